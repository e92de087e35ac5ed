//! The Docker Engine API: the real `docker` command line on orlopd, and beside it on Debian's dockerd.

mod build;
mod containers;
mod files;
mod images;
mod kill_points;
mod networks;
mod programs;
mod recovery;
mod side;
mod volumes;
mod walk;
