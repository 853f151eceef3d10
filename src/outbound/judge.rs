//! Which addresses may be connected to when a tenant names the target.
//!
//! Only what the whole Internet reaches: global unicast. The rest is what this host or its neighbours answer at, and would let a tenant speak
//! with the server's own place in the network. The networks are those of the IANA special-purpose address registries (RFC 6890) that are
//! not globally reachable, and of protocols that carry an IPv4 address in an IPv6 one, which is then judged too.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What is wrong with an address; reads well after "is".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault(&'static str);

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(first: u16, second: u16, third: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, third, 0, 0, 0, 0, 0), length)
}

/// IPv4 networks that are not public unicast.
const REFUSED_V4: [(Ipv4Net, Fault); 17] = [
    (v4(0, 0, 0, 0, 8), Fault("an unspecified address (0.0.0.0/8)")),
    (v4(10, 0, 0, 0, 8), Fault("a private address (RFC 1918)")),
    (v4(100, 64, 0, 0, 10), Fault("a shared address of a provider's network (RFC 6598)")),
    (v4(127, 0, 0, 0, 8), Fault("a loopback address")),
    (v4(168, 63, 129, 16, 32), Fault("where a cloud keeps its metadata")),
    (v4(169, 254, 0, 0, 16), Fault("a link-local address, where clouds keep their metadata")),
    (v4(172, 16, 0, 0, 12), Fault("a private address (RFC 1918)")),
    (v4(192, 0, 0, 0, 24), Fault("an address of protocols (RFC 6890)")),
    (v4(192, 0, 2, 0, 24), Fault("an address for documentation (RFC 5737)")),
    (v4(192, 88, 99, 0, 24), Fault("an address of 6to4 relays (RFC 7526)")),
    (v4(192, 168, 0, 0, 16), Fault("a private address (RFC 1918)")),
    (v4(198, 18, 0, 0, 15), Fault("an address for benchmarks (RFC 2544)")),
    (v4(198, 51, 100, 0, 24), Fault("an address for documentation (RFC 5737)")),
    (v4(203, 0, 113, 0, 24), Fault("an address for documentation (RFC 5737)")),
    (v4(224, 0, 0, 0, 4), Fault("a multicast address")),
    (v4(255, 255, 255, 255, 32), Fault("the broadcast address")),
    (v4(240, 0, 0, 0, 4), Fault("a reserved address (RFC 1112)")),
];

/// What IPv6 has assigned for global unicast (RFC 4291): all else is refused.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);
/// IPv4 through a translator (RFC 6052): the way to IPv4 targets in a network without it, so it is judged by the IPv4 address alone.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);
const COMPATIBLE: Ipv6Net = v6(0, 0, 0, 96);
const TEREDO: Ipv6Net = v6(0x2001, 0, 0, 32);
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16);

/// IPv6 networks that are not public unicast; the first that fits says what it is.
const REFUSED_V6: [(Ipv6Net, Fault); 14] = [
    (v6(0, 0, 0, 128), Fault("the unspecified address")),
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), Fault("a loopback address")),
    (MAPPED, Fault("an IPv4 address written as IPv6 (::ffff:0:0/96)")),
    (COMPATIBLE, Fault("an IPv4 address written as IPv6 (::/96, RFC 4291)")),
    (v6(0x64, 0xff9b, 1, 48), Fault("an address of a local translator to IPv4 (RFC 8215)")),
    (v6(0x100, 0, 0, 64), Fault("an address that discards (RFC 6666)")),
    (TEREDO, Fault("a Teredo tunnel's address (RFC 4380)")),
    (v6(0x2001, 0, 0, 23), Fault("an address of protocols (RFC 2928)")),
    (v6(0x2001, 0xdb8, 0, 32), Fault("an address for documentation (RFC 3849)")),
    (SIX_TO_FOUR, Fault("a 6to4 tunnel's address (RFC 3056)")),
    (v6(0x3fff, 0, 0, 20), Fault("an address for documentation (RFC 9637)")),
    (v6(0xfc00, 0, 0, 7), Fault("a unique local address (RFC 4193)")),
    (v6(0xfe80, 0, 0, 10), Fault("a link-local address")),
    (v6(0xff00, 0, 0, 8), Fault("a multicast address")),
];

/// What an address carries of another.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let at = |n: usize| {
        let [a, b] = segments[n].to_be_bytes();
        let [c, d] = segments[n + 1].to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    if address.is_unspecified() || address.is_loopback() {
        return None;
    }
    if MAPPED.contains(&address) || COMPATIBLE.contains(&address) || NAT64.contains(&address) {
        return Some(at(6));
    }
    if SIX_TO_FOUR.contains(&address) {
        return Some(at(1));
    }
    // Teredo keeps the client's address inverted (RFC 4380, section 4).
    TEREDO.contains(&address).then(|| Ipv4Addr::from(!u32::from(at(6))))
}

/// Judges addresses: what is public, and what the operator allows beyond it.
#[derive(Debug, Clone, Default)]
pub(super) struct Guard {
    allowed: Vec<IpNet>,
}

impl Guard {
    pub(super) fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Whether this address may be connected to.
    ///
    /// # Errors
    /// What it is instead of public.
    pub(super) fn judge(&self, address: IpAddr) -> Result<(), Fault> {
        match address {
            IpAddr::V4(address) => self.judge_v4(address),
            IpAddr::V6(address) => self.judge_v6(address),
        }
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|network| network.contains(&address))
    }

    fn judge_v4(&self, address: Ipv4Addr) -> Result<(), Fault> {
        let fault = REFUSED_V4.iter().find(|(network, _)| network.contains(&address));
        match fault {
            Some((_, fault)) if !self.is_allowed(address.into()) => Err(*fault),
            _ => Ok(()),
        }
    }

    fn judge_v6(&self, address: Ipv6Addr) -> Result<(), Fault> {
        // A network allowed as IPv6 says nothing of the IPv4 addresses that hide in it.
        if let Some(inner) = embedded(address) {
            self.judge_v4(inner)?;
        }
        if self.is_allowed(address.into()) || NAT64.contains(&address) {
            return Ok(());
        }
        match REFUSED_V6.iter().find(|(network, _)| network.contains(&address)) {
            Some((_, fault)) => Err(*fault),
            None if GLOBAL_V6.contains(&address) => Ok(()),
            None => Err(Fault("a reserved address (RFC 4291)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        Guard::new(allowed.iter().map(|network| network.parse().unwrap()).collect())
    }

    fn judge(guard: &Guard, address: &str) -> Result<(), Fault> {
        guard.judge(address.parse().unwrap())
    }

    #[test]
    fn what_is_public_passes() {
        let public = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "2001:200::1",
            "2003::1",
            // A translator's address of 8.8.8.8.
            "64:ff9b::808:808",
        ];
        for address in public {
            assert_eq!(judge(&guard(&[]), address), Ok(()), "{address}");
        }
    }

    #[test]
    fn what_is_not_public_is_refused_with_what_it_is() {
        let cases = [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.0.0.1", "RFC 1918"),
            ("100.64.0.1", "RFC 6598"),
            ("100.100.100.200", "RFC 6598"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("168.63.129.16", "metadata"),
            ("169.254.169.254", "link-local"),
            ("172.16.0.1", "RFC 1918"),
            ("172.31.255.255", "RFC 1918"),
            ("192.0.0.1", "protocols"),
            ("192.0.2.1", "documentation"),
            ("192.168.255.255", "RFC 1918"),
            ("198.18.0.1", "benchmarks"),
            ("198.19.255.255", "benchmarks"),
            ("203.0.113.9", "documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::7f00:1", "loopback"),
            ("::808:808", "written as IPv6"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "link-local"),
            ("::ffff:8.8.8.8", "written as IPv6"),
            ("64:ff9b::7f00:1", "loopback"),
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("64:ff9b:1::808:808", "local translator"),
            ("100::1", "discards"),
            ("2001::1", "reserved"),
            ("2001:0:0:0:0:0:80ff:fffe", "loopback"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "documentation"),
            ("2001:0:4136:e378:8000:63bf:f7f7:f7f7", "Teredo"),
            ("2001:2::1", "protocols"),
            ("2001:db8::1", "documentation"),
            ("2002:7f00:1::", "loopback"),
            ("2002:a00:1::1", "RFC 1918"),
            ("2002:808:808::1", "6to4"),
            ("3fff::1", "documentation"),
            ("4000::1", "reserved"),
            ("5f00::1", "reserved"),
            ("fc00::1", "unique local"),
            ("fd00:ec2::254", "unique local"),
            ("fe80::1", "link-local"),
            ("fec0::1", "reserved"),
            ("ff02::1", "multicast"),
        ];
        for (address, expected) in cases {
            let fault = judge(&guard(&[]), address).expect_err(address).to_string();
            assert!(fault.contains(expected), "{address} is {fault}");
        }
    }

    #[test]
    fn the_operator_allows_networks_and_nothing_beside_them() {
        let guard = guard(&["10.1.0.0/16", "127.0.0.1/32", "fd00::/8", "::/0"]);
        for allowed in ["10.1.2.3", "127.0.0.1", "fd12::1", "::1", "fe80::1", "::ffff:10.1.2.3", "2002:a01:1::1"] {
            assert_eq!(judge(&guard, allowed), Ok(()), "{allowed}");
        }
        // That every IPv6 address is allowed lets no IPv4 address through.
        for refused in ["10.2.0.0", "127.0.0.2", "::ffff:10.2.0.1", "::10.2.0.1", "2002:a02:1::1", "64:ff9b::a02:1"] {
            assert!(judge(&guard, refused).is_err(), "{refused}");
        }
    }

    /// Every form that IPv6 has for an IPv4 address: mapped, compatible, NAT64, 6to4, Teredo.
    fn wrapped(address: Ipv4Addr) -> [Ipv6Addr; 5] {
        let bits = u128::from(u32::from(address));
        let inverted = u128::from(!u32::from(address));
        let forms = [
            (0xffff << 32) | bits,
            bits,
            (0x0064_ff9b << 96) | bits,
            (0x2002 << 112) | (bits << 80),
            (0x2001_0000 << 96) | inverted,
        ];
        forms.map(Ipv6Addr::from)
    }

    proptest! {
        #[test]
        fn no_wrapping_lets_an_address_through_that_is_refused(bits in any::<u32>()) {
            // In the compatible form these are IPv6 addresses of their own.
            prop_assume!(bits > 1);
            let address = Ipv4Addr::from(bits);
            // The addresses of the tables come up too seldom by chance.
            for address in [address, Ipv4Addr::from(0x7f00_0000 | bits >> 8), Ipv4Addr::from(0xa9fe_0000 | bits >> 16)] {
                if guard(&[]).judge(address.into()).is_err() {
                    for form in wrapped(address) {
                        prop_assert!(guard(&["::/0"]).judge(form.into()).is_err(), "{form}");
                    }
                }
            }
        }

        #[test]
        fn what_is_neither_global_nor_translated_never_passes(bits in any::<u128>()) {
            let address = Ipv6Addr::from(bits);
            if guard(&[]).judge(address.into()).is_ok() {
                prop_assert!(GLOBAL_V6.contains(&address) || NAT64.contains(&address));
            }
        }

        #[test]
        fn the_standard_library_agrees_on_ipv4(bits in any::<u32>()) {
            let address = Ipv4Addr::from(bits);
            let local = address.is_private() || address.is_loopback() || address.is_link_local() || address.is_multicast()
                || address.is_broadcast() || address.is_documentation() || address.is_unspecified();
            prop_assert!(!local || guard(&[]).judge(address.into()).is_err(), "{}", address);
        }
    }
}
