//! Which further QEMU arguments a specification may carry.
//!
//! A specification comes from whoever may define a VM, and QEMU can read and write any file its user can. So nothing that
//! names a file, a socket, a program or a host device is allowed (invariant 10), and what is allowed is listed, never what
//! is not: a new QEMU brings new options.

use super::command_line::CommandLineError;

/// An option that may be given.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// The option, as QEMU spells it.
    pub option: &'static str,
    /// What its value may be.
    pub value: AllowedValue,
}

/// What the value of an option may be.
#[derive(Debug, Clone, Copy)]
pub enum AllowedValue {
    /// The option has none.
    None,
    /// One of these PCI devices, without properties. Sterna gives it its address.
    Device(&'static [&'static str]),
    /// `key=value` pairs of these keys, joined by commas.
    Keys(&'static [&'static str]),
}

/// All that may be given.
pub const ALLOWED: &[Allowed] = &[
    Allowed { option: "-no-reboot", value: AllowedValue::None },
    Allowed { option: "-action", value: AllowedValue::Keys(&["reboot", "shutdown", "panic", "watchdog"]) },
    Allowed { option: "-rtc", value: AllowedValue::Keys(&["base", "clock", "driftfix"]) },
    Allowed {
        option: "-smbios",
        value: AllowedValue::Keys(&[
            "type",
            "manufacturer",
            "product",
            "version",
            "serial",
            "sku",
            "family",
            "asset",
            "vendor",
            "date",
            "release",
        ]),
    },
    Allowed {
        option: "-device",
        value: AllowedValue::Device(&["virtio-rng-pci", "virtio-balloon-pci", "i6300esb", "pvpanic-pci"]),
    },
];

/// Further arguments that may be given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Checked<'a> {
    /// Those that go to QEMU as they are.
    pub(super) plain: Vec<&'a str>,
    /// PCI devices, by model.
    pub(super) devices: Vec<&'a str>,
}

/// Whether every argument is in the list.
///
/// # Errors
/// [`CommandLineError::ExtraArgument`] for the first that is not.
pub fn check(arguments: &[String]) -> Result<(), CommandLineError> {
    checked(arguments).map(drop)
}

/// Holds arguments against [`ALLOWED`].
///
/// # Errors
/// [`CommandLineError::ExtraArgument`] for the first that is not in it.
pub(super) fn checked(arguments: &[String]) -> Result<Checked<'_>, CommandLineError> {
    let mut checked = Checked::default();
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let refuse = |argument: &str, reason| CommandLineError::ExtraArgument { argument: argument.to_owned(), reason };
        let allowed = ALLOWED.iter().find(|allowed| allowed.option == option).ok_or_else(|| {
            let options: Vec<_> = ALLOWED.iter().map(|allowed| allowed.option).collect();
            refuse(option, format!("give one of {}", options.join(" ")))
        })?;
        let mut value = || rest.next().ok_or_else(|| refuse(option, "it needs a value behind it".to_owned()));
        match allowed.value {
            AllowedValue::None => checked.plain.push(option),
            AllowedValue::Keys(keys) => {
                let value = value()?;
                if !value.split(',').all(|pair| is_pair(pair, keys)) {
                    return Err(refuse(value, format!("give key=value pairs of {}, joined by commas", keys.join(" "))));
                }
                checked.plain.extend([option.as_str(), value]);
            }
            AllowedValue::Device(models) => {
                let value = value()?;
                if !models.contains(&value.as_str()) {
                    return Err(refuse(value, format!("give one of {}", models.join(" "))));
                }
                checked.devices.push(value);
            }
        }
    }
    Ok(checked)
}

/// A doubled comma, which is a comma within a value to QEMU, makes an empty pair here and is refused like any other.
fn is_pair(pair: &str, keys: &[&str]) -> bool {
    let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    pair.split_once('=').is_some_and(|(key, text)| keys.contains(&key) && printable(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str]) -> bool {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        checked(&arguments).is_ok()
    }

    #[test]
    fn only_what_is_listed_passes() {
        assert!(check(&[]));
        assert!(check(&["-no-reboot", "-rtc", "base=utc,clock=host", "-device", "virtio-rng-pci"]));
        assert!(check(&["-smbios", "type=1,serial=4711,product=a b"]));
        let arguments = ["-no-reboot", "-device", "i6300esb", "-rtc", "base=utc"].map(str::to_owned);
        let wanted = Checked { plain: vec!["-no-reboot", "-rtc", "base=utc"], devices: vec!["i6300esb"] };
        assert_eq!(checked(&arguments), Ok(wanted));
        for refused in [
            &["-rtc"][..],
            &["-smbios", "type=1,,file=/etc/shadow"],
            &["-smbios", "file=/etc/shadow"],
            &["-smbios", "type=11,path=/etc/shadow"],
            &["-device", "virtio-net-pci,romfile=/etc/shadow"],
            &["-device", "virtio-rng-pci,rng=x"],
            &["-drive", "file=/dev/sda"],
            &["--rtc", "base=utc"],
            &["-rtc", "base"],
            &["-rtc", ""],
            &["stray"],
        ] {
            assert!(!check(refused), "{refused:?}");
        }
    }
}
