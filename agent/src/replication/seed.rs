//! The seed of a clone: what its cloud-init is told, by the data source NoCloud, on a FAT on a disk of its own.
//!
//! The instance id is the clone's: to cloud-init it is a machine that was not there before, which gets a network configuration anew, by
//! the clone's own addresses, and ssh host keys and a name where it has none of its own yet. Who may log in, and where packages come
//! from, stays as it is.

use std::io::{self, Cursor, Write as _};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Map, Value, json};
use sterna_shared::replica::SEED_SIZE;
use sterna_shared::vm::VmSpec;

/// What cloud-init knows it by.
const LABEL: [u8; 11] = *b"CIDATA     ";

/// The whole of it, byte by byte, for a clone whose system calls itself so; or does already, where it was adapted, and knows better
/// which domain it is in.
///
/// # Errors
/// It has no room for so many interfaces; no VM has as many.
pub fn image(clone: &VmSpec, hostname: &str, adapted: bool) -> io::Result<Vec<u8>> {
    let mut image = vec![0; usize::try_from(SEED_SIZE.0).map_err(io::Error::other)?];
    let (number, ..) = clone.id.uuid().as_fields();
    let options = FormatVolumeOptions::new().volume_label(LABEL).volume_id(number);
    fatfs::format_volume(Cursor::new(&mut image[..]), options)?;
    let volume = FileSystem::new(Cursor::new(&mut image[..]), FsOptions::new())?;
    for (name, text) in files(clone, hostname, adapted) {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(image)
}

/// JSON is YAML, and quotes what YAML would take for a number.
fn files(clone: &VmSpec, hostname: &str, adapted: bool) -> [(&'static str, String); 3] {
    let interfaces = clone.nics.iter().enumerate().map(|(index, nic)| {
        // By its machine id, which only an adapted system has anew, a DHCP server would take it for the VM that it is a clone of.
        let by_address =
            json!({ "match": { "macaddress": nic.mac.to_string() }, "dhcp4": true, "dhcp-identifier": "mac" });
        (format!("nic{index}"), by_address)
    });
    let interfaces: Map<String, Value> = interfaces.collect();
    let mut instance = json!({ "instance-id": clone.id });
    // Nobody is in that list. One that is empty is what cloud-init before 23.2 complains of.
    let mut config = json!({ "users": [[]], "apt": { "preserve_sources_list": true }, "preserve_hostname": adapted });
    if adapted {
        // Its keys are its own, and hooks may have told others of them.
        config["ssh_deletekeys"] = json!(false);
    } else {
        // The first is taken before there is a network, whatever the configuration says, and cut at its first dot.
        instance["local-hostname"] = json!(hostname);
        config["hostname"] = json!(hostname);
        config["fqdn"] = json!(hostname);
        config["manage_etc_hosts"] = json!("localhost");
    }
    [
        ("meta-data", format!("{instance}\n")),
        ("user-data", format!("#cloud-config\n{config}\n")),
        ("network-config", format!("{}\n", json!({ "version": 2, "ethernets": interfaces }))),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use sterna_shared::vm::{NICS_MAX, NicSpec};

    use super::*;

    fn clone(nics: usize) -> VmSpec {
        let mut spec: VmSpec = serde_json::from_value(json!({
            "name": "trial", "id": "0197c0de-0000-7000-8000-0000000000c1", "memory": 512 << 20,
        }))
        .expect("a specification");
        let nic = |number: usize| NicSpec {
            mac: format!("52:54:00:00:00:{number:02x}").parse().expect("a MAC"),
            isolated: None,
            bridge: None,
        };
        spec.nics = (0..nics).map(nic).collect();
        spec
    }

    fn read(image: &[u8]) -> Vec<(String, String)> {
        let volume = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).expect("a FAT");
        assert_eq!(volume.read_volume_label_from_root_dir().expect("read").as_deref(), Some("CIDATA"));
        assert_eq!((volume.volume_label().as_str(), volume.volume_id()), ("CIDATA", 0x0197_c0de));
        let text = |entry: fatfs::DirEntry<'_, _>| {
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).expect("text");
            (entry.file_name(), text)
        };
        volume.root_dir().iter().map(|entry| text(entry.expect("an entry"))).collect()
    }

    #[test]
    fn a_seed_reads_as_it_was_written() {
        let image = image(&clone(2), "1e3.example", false).expect("an image");
        assert_eq!(image.len(), 1 << 20);
        let expected = [
            ("meta-data", r#"{"instance-id":"0197c0de-0000-7000-8000-0000000000c1","local-hostname":"1e3.example"}"#),
            (
                "user-data",
                "#cloud-config\n{\"users\":[[]],\"apt\":{\"preserve_sources_list\":true},\"preserve_hostname\":false,\
                 \"hostname\":\"1e3.example\",\"fqdn\":\"1e3.example\",\"manage_etc_hosts\":\"localhost\"}",
            ),
            (
                "network-config",
                r#"{"version":2,"ethernets":{"nic0":{"match":{"macaddress":"52:54:00:00:00:00"},"dhcp4":true,"dhcp-identifier":"mac"},"nic1":{"match":{"macaddress":"52:54:00:00:00:01"},"dhcp4":true,"dhcp-identifier":"mac"}}}"#,
            ),
        ];
        assert_eq!(read(&image), expected.map(|(name, text)| (name.to_owned(), format!("{text}\n"))));
    }

    #[test]
    fn an_adapted_system_keeps_its_name_and_its_keys() {
        let [(_, instance), (_, config), _] = files(&clone(1), "trial", true);
        assert_eq!(
            instance, "{\"instance-id\":\"0197c0de-0000-7000-8000-0000000000c1\"}\n",
            "a name here is always taken"
        );
        let config: Value =
            serde_json::from_str(config.trim_start_matches("#cloud-config\n")).expect("a configuration");
        assert_eq!([&config["preserve_hostname"], &config["ssh_deletekeys"]], [&json!(true), &json!(false)]);
        assert!(config.get("hostname").is_none() && config.get("fqdn").is_none(), "{config}");
    }

    #[test]
    fn the_largest_seed_fits_and_one_of_no_network_says_so() {
        let files = read(&image(&clone(NICS_MAX), &"a".repeat(64), false).expect("an image"));
        assert!(files[2].1.contains("52:54:00:00:00:0f") && files[0].1.contains(&"a".repeat(64)));
        assert_eq!(
            read(&image(&clone(0), "trial", false).expect("an image"))[2].1,
            "{\"version\":2,\"ethernets\":{}}\n"
        );
    }

    #[test]
    fn a_seed_is_the_same_each_time() {
        assert_eq!(
            image(&clone(1), "trial", false).expect("an image"),
            image(&clone(1), "trial", false).expect("an image")
        );
    }
}
