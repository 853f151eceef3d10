//! From a pushed commit to an image in the registry: durable queue → checkout → detect → compile → slug → image → registry, then
//! over to the deployer.
