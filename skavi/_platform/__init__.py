"""Interfaces to the system and to other libraries: files, memory, processes, private names."""
