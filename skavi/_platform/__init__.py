"""What surrounds the library: files, memory, processes, other libraries' private names."""
