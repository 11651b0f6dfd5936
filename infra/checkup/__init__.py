"""What `deepspec doctor` tries on this machine: disk, memory, clock, store, engine; with how to mend each."""
