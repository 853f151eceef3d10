//! What tenants' containers may reach besides each other: packet filter rules on the bridges of this Berth.
//!
//! The engine keeps one bridge from another, but a container could reach every port of the host through its gateway. Two
//! chains per instance, hooked in front of everything else for packets that come in by this instance's bridges (`-i bth-TAG-+`):
//! one in `INPUT` lets answers and the router's ports through and drops the rest; one in `DOCKER-USER` drops what goes to denied networks
//! (cloud metadata). Each instance has its own bridges and chains, so that two of them never see each other's rules.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, bail};
use tokio::{io::AsyncWriteExt, process::Command};

use super::names::Names;

/// A rule change takes milliseconds; the lock that iptables waits for is held by others for about as long.
const DEADLINE: Duration = Duration::from_secs(20);

/// IP version: which tools and which networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn tool(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// The rules of one Berth.
#[derive(Debug, Clone)]
pub struct Firewall {
    /// `bth-TAG-+`.
    bridges: String,
    /// Chain hooked into INPUT.
    to_host: String,
    /// Chain hooked into DOCKER-USER.
    onward: String,
    host_ports: Vec<u16>,
    denied_networks: Vec<String>,
}

/// Checks that these are networks (or addresses) and nothing else: they go into a rule file.
pub fn check_networks(networks: &[String]) -> anyhow::Result<()> {
    for network in networks {
        let (address, prefix) = network.split_once('/').unwrap_or((network, "0"));
        if address.parse::<std::net::IpAddr>().is_err() || !prefix.parse::<u8>().is_ok_and(|prefix| prefix <= 128) {
            bail!("{network:?} in the denied networks is not a network; write it as 169.254.0.0/16");
        }
    }
    Ok(())
}

impl Firewall {
    /// Rules for the bridges of `names`.
    pub fn new(names: &Names, host_ports: &[u16], denied_networks: &[String]) -> Self {
        let tag = names.tag().to_ascii_uppercase();
        Self {
            bridges: names.bridges(),
            to_host: format!("BERTH-{tag}-IN"),
            onward: format!("BERTH-{tag}-FWD"),
            host_ports: host_ports.to_vec(),
            denied_networks: denied_networks.to_vec(),
        }
    }

    /// Both chains in the format of `iptables-restore --noflush`: naming a chain empties it, so applying this twice is the same as once, and
    /// it is applied all at once.
    fn chains(&self, family: Family) -> String {
        let Self { to_host, onward, .. } = self;
        let mut text = format!("*filter\n:{to_host} - [0:0]\n:{onward} - [0:0]\n");
        text += &format!("-A {to_host} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n");
        for port in &self.host_ports {
            text += &format!("-A {to_host} -p tcp -m tcp --dport {port} -j ACCEPT\n");
        }
        text += &format!("-A {to_host} -j DROP\n");
        for network in self.denied_networks.iter().filter(|network| network.contains(':') == (family == Family::V6)) {
            text += &format!("-A {onward} -d {network} -j DROP\n");
        }
        text + "COMMIT\n"
    }

    /// Puts the rules in place, whatever is there now. Safe to repeat.
    pub async fn ensure(&self) -> anyhow::Result<()> {
        self.ensure_family(Family::V4).await?;
        if tokio::fs::try_exists("/proc/sys/net/ipv6").await.unwrap_or(false)
            && let Err(error) = self.ensure_family(Family::V6).await
        {
            // Tenants' networks have no IPv6 and the engine turns it off within containers; this is the second lock on that door.
            tracing::debug!(error = format!("{error:#}"), "no IPv6 packet filter rules");
        }
        Ok(())
    }

    async fn ensure_family(&self, family: Family) -> anyhow::Result<()> {
        let restore = format!("{}-restore", family.tool());
        run(&restore, &["--noflush", "--wait", "10"], Some(self.chains(family))).await?;
        for (hook, chain) in self.hooks(family).await {
            let jump = ["-i", &self.bridges, "-j", chain];
            if iptables(family, "-C", &hook, &jump).await.is_err() {
                iptables(family, "-I", &hook, &jump).await?;
            }
        }
        Ok(())
    }

    /// Where each chain is called from. An engine that manages no rules for this family has no `DOCKER-USER`.
    async fn hooks(&self, family: Family) -> [(String, &str); 2] {
        let user = iptables(family, "-n", "-L", &["DOCKER-USER"]).await.is_ok();
        let forward = if user { "DOCKER-USER" } else { "FORWARD" };
        [("INPUT".to_owned(), &self.to_host), (forward.to_owned(), &self.onward)]
    }

    /// Takes the rules away.
    pub async fn remove(&self) {
        for family in [Family::V4, Family::V6] {
            for (hook, chain) in [("INPUT", &self.to_host), ("DOCKER-USER", &self.onward), ("FORWARD", &self.onward)] {
                // An error means that there is none (left).
                while iptables(family, "-D", hook, &["-i", &self.bridges, "-j", chain]).await.is_ok() {}
            }
            for chain in [&self.to_host, &self.onward] {
                let _ = iptables(family, "-F", chain, &[]).await;
                let _ = iptables(family, "-X", chain, &[]).await;
            }
        }
    }
}

async fn iptables(family: Family, command: &str, chain: &str, rest: &[&str]) -> anyhow::Result<()> {
    let mut arguments = vec!["-w", "10", command, chain];
    arguments.extend(rest);
    run(family.tool(), &arguments, None).await
}

async fn run(program: &str, arguments: &[&str], input: Option<String>) -> anyhow::Result<()> {
    let work = async {
        let mut child = Command::new(program)
            .args(arguments)
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{program} cannot be run"))?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
            pipe.write_all(text.as_bytes()).await.with_context(|| format!("{program} takes no input"))?;
        }
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {}: {}", arguments.join(" "), message.trim());
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, work).await.with_context(|| format!("{program} does not end"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_networks_are_networks() {
        let check = |text: &str| check_networks(&[text.to_owned()]);
        for text in ["169.254.0.0/16", "169.254.169.254", "fd00:ec2::254/128"] {
            check(text).unwrap();
        }
        for text in ["", "x", "1.2.3.4/x", "1.2.3.4/16 -j ACCEPT", "1.2.3.4\nCOMMIT"] {
            assert!(check(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn rules() {
        let names = Names::new("berth", "one", String::new());
        let denied = ["169.254.0.0/16".to_owned(), "fd00:ec2::254/128".to_owned()];
        let firewall = Firewall::new(&names, &[8080, 8443], &denied);
        let tag = names.tag().to_ascii_uppercase();
        let v4 = firewall.chains(Family::V4).replace(&tag, "TAG");
        let want = "*filter\n:BERTH-TAG-IN - [0:0]\n:BERTH-TAG-FWD - [0:0]\n\
            -A BERTH-TAG-IN -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
            -A BERTH-TAG-IN -p tcp -m tcp --dport 8080 -j ACCEPT\n\
            -A BERTH-TAG-IN -p tcp -m tcp --dport 8443 -j ACCEPT\n\
            -A BERTH-TAG-IN -j DROP\n\
            -A BERTH-TAG-FWD -d 169.254.0.0/16 -j DROP\nCOMMIT\n";
        assert_eq!(v4, want);
        let v6 = firewall.chains(Family::V6);
        assert!(v6.contains("fd00:ec2::254/128") && !v6.contains("169.254"));
    }
}
