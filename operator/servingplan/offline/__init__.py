"""Planning without a cluster: what a person asks at the command line, and the answer in a form to read or to process."""
