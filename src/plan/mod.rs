//! Pure decisions: (desired, observed, now) → actions and why.
