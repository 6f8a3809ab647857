"""The endpoint picker: answers Envoy, for every generating request, which model and which pod it goes to."""
