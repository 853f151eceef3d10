//! The SSH door with real `ssh`, `ssh-keygen` and `git`: pushes, clones, refusals, limits, attacks.

mod attacks;
mod commands;
mod connections;
mod harness;
mod last_look;
mod pipeline;
mod pushes;
mod refusals;
mod shares;
mod survival;
