"""What touches the machine: child processes, engines, environment, servers."""
