//! A network that one guest has for itself: nothing it sends leaves it, and only what its host begins comes in.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The widest such network, and the narrowest: beside the guest two addresses of QEMU's are in it.
const PREFIX_LENGTHS: std::ops::RangeInclusive<u8> = 8..=29;

/// A guest's address in a network of its own, and with it the network. The guest is given it by DHCP, or has it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = r"^\d{1,3}(\.\d{1,3}){3}/\d{1,2}$")))]
#[serde(try_from = "String", into = "String")]
pub struct IsolatedAddress {
    guest: Ipv4Addr,
    prefix: u8,
}

impl Default for IsolatedAddress {
    /// The address that QEMU's user-mode network gives out where nobody says otherwise.
    fn default() -> Self {
        Self { guest: Ipv4Addr::new(10, 0, 2, 15), prefix: 24 }
    }
}

impl IsolatedAddress {
    /// Addresses of guests, each in a network of its own that is none of the others, nor has anything in common with this one's.
    pub fn apart(self) -> impl Iterator<Item = Self> {
        let at = |a: u8, b: u8| move |c: u8| Self { guest: Ipv4Addr::new(a, b, c, 15), prefix: 24 };
        let all = (2..=u8::MAX).map(at(10, 0)).chain((0..=u8::MAX).map(at(192, 168)));
        all.filter(move |one| !one.overlaps(self))
    }

    fn overlaps(self, other: Self) -> bool {
        let wider = u32::MAX << (32 - self.prefix.min(other.prefix));
        self.guest.to_bits() & wider == other.guest.to_bits() & wider
    }

    /// The guest's address.
    #[must_use]
    pub const fn guest(self) -> Ipv4Addr {
        self.guest
    }

    /// The network that it is in, as `10.0.2.0/24`.
    #[must_use]
    pub fn network(self) -> String {
        format!("{}/{}", Ipv4Addr::from_bits(self.first()), self.prefix)
    }

    /// Two more addresses of it: of the network's own end, and of the name server that it has to have.
    #[must_use]
    pub fn others(self) -> [Ipv4Addr; 2] {
        let mut free = (1..=3).map(|place| Ipv4Addr::from_bits(self.first() + place)).filter(|one| *one != self.guest);
        // Of three addresses at most one is the guest's.
        std::array::from_fn(|_| free.next().unwrap_or(self.guest))
    }

    fn first(self) -> u32 {
        self.guest.to_bits() & (u32::MAX << (32 - self.prefix))
    }
}

impl FromStr for IsolatedAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || {
            let (narrowest, widest) = (PREFIX_LENGTHS.end(), PREFIX_LENGTHS.start());
            format!(
                "{text:?} is no address of a guest with its network, such as 192.0.2.10/24: IPv4, of a network from /{widest} to /{narrowest}"
            )
        };
        let (guest, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let one = Self { guest: guest.parse().map_err(|_| invalid())?, prefix: prefix.parse().map_err(|_| invalid())? };
        if !PREFIX_LENGTHS.contains(&one.prefix) {
            return Err(invalid());
        }
        let place = one.guest.to_bits() - one.first();
        let special = one.guest.is_loopback() || one.guest.is_multicast() || one.guest.octets()[0] == 0;
        if special || place == 0 || place == u32::MAX >> one.prefix {
            return Err(invalid());
        }
        Ok(one)
    }
}

impl TryFrom<String> for IsolatedAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<IsolatedAddress> for String {
    fn from(address: IsolatedAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for IsolatedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.guest, self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_one_guest_are_in_networks_that_have_nothing_in_common() {
        for first in ["10.0.2.15/24", "10.9.9.9/8", "192.168.0.7/16", "192.0.2.10/24"] {
            let first: IsolatedAddress = first.parse().expect("an address");
            let all: Vec<IsolatedAddress> = std::iter::once(first).chain(first.apart()).take(64).collect();
            assert_eq!(all.len(), 64);
            for (index, one) in all.iter().enumerate() {
                assert!(one.to_string().parse::<IsolatedAddress>().as_ref() == Ok(one), "{one}");
                assert!(all[..index].iter().all(|other| !other.overlaps(*one)), "{one}");
            }
        }
    }

    #[test]
    fn an_address_names_its_network_and_leaves_two_for_qemu() {
        for (text, network, others) in [
            ("10.0.2.15/24", "10.0.2.0/24", ["10.0.2.1", "10.0.2.2"]),
            ("192.0.2.1/29", "192.0.2.0/29", ["192.0.2.2", "192.0.2.3"]),
            ("172.16.9.2/12", "172.16.0.0/12", ["172.16.0.1", "172.16.0.2"]),
        ] {
            let one: IsolatedAddress = text.parse().expect("an address");
            assert_eq!((one.to_string(), one.network()), (text.to_owned(), network.to_owned()));
            assert_eq!(one.others().map(|other| other.to_string()), others);
        }
        assert_eq!(IsolatedAddress::default().to_string().parse(), Ok(IsolatedAddress::default()));
    }

    #[test]
    fn what_no_guest_can_have_is_refused() {
        for wrong in [
            "",
            "10.0.2.15",
            "10.0.2.15/",
            "10.0.2.15/30",
            "10.0.2.15/7",
            "10.0.2.0/24",
            "10.0.2.255/24",
            "127.0.0.5/8",
            "224.0.0.9/24",
            "0.0.0.9/8",
            "::1/64",
            "10.0.2.15/24,restrict=off",
        ] {
            assert!(wrong.parse::<IsolatedAddress>().expect_err(wrong).contains("192.0.2.10/24"), "{wrong}");
        }
    }
}
