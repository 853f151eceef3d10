//! The SSH door: keys → user, exec → command or git, a byte pump with back-pressure.
