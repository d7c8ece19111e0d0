"""Defences of agents that decide by a network: one Python file and one YAML file each."""
