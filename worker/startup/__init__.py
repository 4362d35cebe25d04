"""How a worker begins: its launch file checked, and one module per device kind that makes it ready."""
