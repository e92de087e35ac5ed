//! The Docker Engine API: the real `docker` command line on orlopd, and beside it on Debian's dockerd.

mod apparmor;
mod budget;
mod build;
mod clients;
mod containers;
mod engine;
mod files;
mod flags;
mod given_up;
mod images;
mod kill_points;
mod networks;
mod programs;
mod recovery;
mod refusals;
mod registries;
mod remap;
mod side;
mod volumes;
mod walk;
