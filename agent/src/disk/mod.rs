//! Images: an NBD client, bitmap passes, digests and the pools they live in.
