//! Logs: of replicas, of the router about an app, of builds. Bounded on disk (a ring of files per environment) and in memory (a slow
//! follower is told how many lines it missed); kept across deploys.
