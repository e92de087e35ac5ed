//! Black-box suite: orlopd and orlopctl, driven over gRPC and by stock clients.
