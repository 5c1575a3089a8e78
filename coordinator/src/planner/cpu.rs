//! Features of a processor that a VM's specification asks for by name, beside the CPU model.
//!
//! QEMU does not refuse what it cannot give: it warns, starts the guest without the feature, and the guest that used it
//! at the source dies of it. Only what the source's processor has and the target's has not is a loss: much of what QEMU
//! knows is no feature of the processor as the kernel lists them (bits of registers, what KVM makes itself), and a
//! guest cannot lose what it never had.

/// What KVM gives to every guest, whatever the processor has.
const MADE_BY_KVM: [&str; 5] = ["archcapabilities", "hypervisor", "tscadjust", "umip", "x2apic"];
/// QEMU's other names of features, and what the kernel calls them; both without what separates their parts.
const ALIASES: [(&str, &str); 5] =
    [("sse3", "pni"), ("pclmuldq", "pclmulqdq"), ("xd", "nx"), ("ffxsr", "fxsropt"), ("i64", "lm")];

/// The features that `cpu`, as QEMU takes it, switches on, and that are lost on the way from a processor with the
/// features `source` to one with those of `target`. They are spelt as `cpu` spells them.
pub(super) fn lost<'a>(cpu: &'a str, source: &[String], target: &[String]) -> Vec<&'a str> {
    let has = |features: &[String], wanted: &str| features.iter().any(|feature| plain(feature) == wanted);
    let is_lost = |name: &&str| {
        let plain = plain(name);
        let wanted = ALIASES.iter().find(|(alias, _)| *alias == plain).map_or(&*plain, |(_, kernel)| kernel);
        !MADE_BY_KVM.contains(&wanted) && has(source, wanted) && !has(target, wanted)
    };
    switched_on(cpu).into_iter().filter(is_lost).collect()
}

/// The features that are on in the end. QEMU sets those with a value first, in their order, then those with a plus,
/// then takes away those with a minus.
fn switched_on(cpu: &str) -> Vec<&str> {
    let mut on: Vec<&str> = Vec::new();
    let (mut plus, mut minus) = (Vec::new(), Vec::new());
    let same = |one: &str, other: &str| plain(one) == plain(other);
    for part in cpu.split(',').skip(1) {
        if let Some(name) = part.strip_prefix('+') {
            plus.push(name);
        } else if let Some(name) = part.strip_prefix('-') {
            minus.push(name);
        } else {
            let (name, value) = part.split_once('=').unwrap_or((part, "on"));
            on.retain(|known| !same(known, name));
            if matches!(value, "on" | "yes" | "true" | "y") {
                on.push(name);
            }
        }
    }
    for name in plus {
        if !on.iter().any(|known| same(known, name)) {
            on.push(name);
        }
    }
    on.retain(|name| !minus.iter().any(|off| same(name, off)));
    on
}

/// A feature's name without what separates its parts: QEMU writes `-` or `.` where the kernel has `_` or nothing.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '.' | '_')).collect::<String>().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(names: &str) -> Vec<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_on_in_the_end_is_what_qemu_gives() {
        for (cpu, on) in [
            ("Skylake-Client", &[][..]),
            ("Skylake-Client,+avx512f", &["avx512f"]),
            ("Skylake-Client,avx512f=on,aes,pcid=off,smep=yes", &["avx512f", "aes", "smep"]),
            ("Skylake-Client,avx512f=on,avx512f=off", &[]),
            ("Skylake-Client,-avx512f,+avx512f,avx512f=on", &[]),
            ("Skylake-Client,+avx512f,avx512f=off", &["avx512f"]),
            ("Skylake-Client,sse4.1=on,+sse4-1", &["sse4.1"]),
        ] {
            assert_eq!(switched_on(cpu), on, "{cpu}");
        }
    }

    #[test]
    fn only_what_the_source_has_and_the_target_has_not_is_lost() {
        let source = features("avx2 avx512f avx512_vnni nx pni sse4_2 tsc_deadline_timer x2apic");
        let target = features("avx2 nx");
        for (cpu, lacking) in [
            ("Skylake-Client,+avx512f", &["avx512f"][..]),
            ("Skylake-Client,avx512-vnni=on,sse4.2", &["avx512-vnni", "sse4.2"]),
            ("Skylake-Client,+sse3,+xd", &["sse3"]),
            ("Skylake-Client,-avx512f", &[]),
            ("Skylake-Client,+avx2", &[]),
            // KVM makes these itself, they are no features of the processor, or the source does not have them either.
            ("Skylake-Client,+x2apic,+tsc-deadline,+rdctl-no,+kvm-pv-eoi,hv-relaxed=on,+amx-tile,enforce", &[]),
        ] {
            assert_eq!(lost(cpu, &source, &target), lacking, "{cpu}");
            assert_eq!(lost(cpu, &source, &source), Vec::<&str>::new(), "{cpu}");
        }
    }
}
