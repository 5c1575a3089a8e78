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
    /// One of these, with nothing behind it.
    OneOf(&'static [&'static str]),
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
        value: AllowedValue::OneOf(&["virtio-rng-pci", "virtio-balloon-pci", "i6300esb", "pvpanic"]),
    },
];

/// Passes on arguments that [`ALLOWED`] has.
///
/// # Errors
/// [`CommandLineError::ExtraArgument`] for the first that it has not.
pub(super) fn checked(arguments: &[String]) -> Result<&[String], CommandLineError> {
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let refuse =
            |argument: &String, reason: String| CommandLineError::ExtraArgument { argument: argument.clone(), reason };
        let allowed = ALLOWED.iter().find(|allowed| allowed.option == option).ok_or_else(|| {
            let options: Vec<_> = ALLOWED.iter().map(|allowed| allowed.option).collect();
            refuse(option, format!("give one of {}", options.join(" ")))
        })?;
        if matches!(allowed.value, AllowedValue::None) {
            continue;
        }
        let value = rest.next().ok_or_else(|| refuse(option, "it needs a value behind it".to_owned()))?;
        allows(allowed.value, value).map_err(|reason| refuse(value, reason))?;
    }
    Ok(arguments)
}

fn allows(allowed: AllowedValue, value: &str) -> Result<(), String> {
    match allowed {
        AllowedValue::None => Ok(()),
        AllowedValue::OneOf(values) if values.contains(&value) => Ok(()),
        AllowedValue::OneOf(values) => Err(format!("give one of {}", values.join(" "))),
        AllowedValue::Keys(keys) => {
            // A doubled comma would be a comma within a value to QEMU and an empty pair here: refused like any other.
            let pair = |pair: &str| {
                pair.split_once('=').is_some_and(|(key, text)| {
                    keys.contains(&key) && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
                })
            };
            if value.split(',').all(pair) {
                Ok(())
            } else {
                Err(format!("give key=value pairs of {}, joined by commas", keys.join(" ")))
            }
        }
    }
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
