"""Starting, serving and stopping over HTTP and stdio, and what the command line offers."""
