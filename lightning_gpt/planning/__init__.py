"""Plans before money is spent: scaling laws, memory, time and cost."""
