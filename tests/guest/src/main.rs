//! Pid 1 of the test guest; everything is in the library, see there.

fn main() {
    sterna_witness::run();
}
