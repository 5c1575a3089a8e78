//! `/etc/fstab`: what is mounted by the name of a device is mounted by UUID from now on, since names depend on what else is
//! there. All else in the file stays as it is, to the letter.

use std::collections::BTreeMap;

/// The text with names of devices replaced, and the names that were; nothing where there are none.
pub(crate) fn by_uuid(text: &str, devices: &BTreeMap<String, String>) -> Option<(String, Vec<String>)> {
    let mut replaced = Vec::new();
    let lines = text.split_inclusive('\n').map(|line| {
        let Some((device, uuid)) = device_of(line).and_then(|name| Some((name, devices.get(name)?))) else {
            return line.to_owned();
        };
        replaced.push(device.to_owned());
        line.replacen(&format!("/dev/{device}"), &format!("UUID={uuid}"), 1)
    });
    let text: String = lines.collect();
    (!replaced.is_empty()).then_some((text, replaced))
}

/// The name of the device that a line mounts, such as `vda1`.
fn device_of(line: &str) -> Option<&str> {
    line.split_whitespace().next()?.strip_prefix("/dev/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_uuid_and_all_else_stays() {
        let devices = BTreeMap::from([
            ("vda1".to_owned(), "0102-0304".to_owned()),
            ("sda2".to_owned(), "aa-bb".to_owned()),
            ("vda".to_owned(), "whole".to_owned()),
        ]);
        let text = "# /dev/vda1 is the root\n/dev/vda1\t/ ext4  defaults 0 1\n  /dev/sda2 none swap sw 0 0\n\
                    UUID=7 /home ext4\n/dev/vda15 /boot/efi vfat\n/dev/mapper/a /var xfs\n\nproc /proc proc # /dev/vda1";
        let (changed, replaced) = by_uuid(text, &devices).expect("changed");
        assert_eq!(replaced, ["vda1", "sda2"]);
        let expected = text.replace("/dev/vda1\t", "UUID=0102-0304\t").replace("/dev/sda2", "UUID=aa-bb");
        assert_eq!(changed, expected);
        assert_eq!(by_uuid(&changed, &devices), None, "a second time there is nothing to do");
        assert_eq!(by_uuid("", &devices), None);
    }
}
