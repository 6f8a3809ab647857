"""From live measurements to corrected profiles, lengths and rates. Pure: what is remembered goes in and comes out."""
