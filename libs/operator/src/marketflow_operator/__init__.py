"""The operator's command line: demo, up, status, audit."""
