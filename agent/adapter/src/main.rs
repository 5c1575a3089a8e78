//! Pid 1 of the helper guest; everything is in the library, see there.

fn main() {
    sterna_adapter::run();
}
