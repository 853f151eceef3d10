//! What a replica listens on, from the kernel's socket tables (`proc(5)`, `/proc/PID/net/tcp`). Parsing is pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::runtime::Listener;

/// State number of a listening socket (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// Docker's own resolver listens on this address in every container; it is not the app's.
const ENGINE_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// The listening sockets in a table of `/proc/PID/net/tcp` or `tcp6`; lines that are not understood are skipped.
pub fn parse_table(table: &str) -> Vec<Listener> {
    table.lines().skip(1).filter_map(parse_line).filter(|listener| listener.address != ENGINE_RESOLVER).collect()
}

fn parse_line(line: &str) -> Option<Listener> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    let (address, port) = local.split_once(':')?;
    if state != LISTEN {
        return None;
    }
    Some(Listener { address: parse_address(address)?, port: u16::from_str_radix(port, 16).ok()? })
}

/// The kernel prints each 32-bit word of an address in the machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for index in 0..4 {
                bytes[index * 4..][..4].copy_from_slice(&word(index * 8)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The listening sockets of a process's network namespace.
pub async fn of_process(pid: i64) -> std::io::Result<Vec<Listener>> {
    let mut found = parse_table(&tokio::fs::read_to_string(format!("/proc/{pid}/net/tcp")).await?);
    // A kernel without IPv6 has no such table.
    if let Ok(table) = tokio::fs::read_to_string(format!("/proc/{pid}/net/tcp6")).await {
        found.extend(parse_table(&table));
    }
    found.sort_by_key(|listener| (listener.port, listener.address));
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn tables() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                  \x20  0: 0B00007F:8C21 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n\
                  \x20  1: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 10001        0 2\n\
                  \x20  2: 00000000:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000 10001        0 3\n\
                  \x20  3: 0200A8C0:1388 0300A8C0:9999 01 00000000:00000000 00:00000000 00000000 10001        0 4\n\
                  garbage\n  4: ZZ:1 00000000:0000 0A\n";
        let want = [("127.0.0.1", 3000), ("0.0.0.0", 5000)];
        let want: Vec<Listener> =
            want.iter().map(|(address, port)| Listener { address: address.parse().unwrap(), port: *port }).collect();
        assert_eq!(parse_table(v4), want);
        let v6 = "header\n\
             0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 5\n\
             1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 6\n\
             2: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 6\n";
        let want = [("::", 8080), ("::1", 80), ("127.0.0.1", 81)];
        let want: Vec<Listener> =
            want.iter().map(|(address, port)| Listener { address: address.parse().unwrap(), port: *port }).collect();
        assert_eq!(parse_table(v6), want);
        assert_eq!(parse_table(""), []);
    }
}
