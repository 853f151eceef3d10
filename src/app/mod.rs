//! Wires everything, owns the tasks, shuts down in order.
