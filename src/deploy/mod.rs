//! From a release to N healthy replicas behind the router: observe → plan → execute, level-triggered; events only nudge.
