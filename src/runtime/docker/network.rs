//! A bridge network per tenant, with addresses from Berth's own pool: the engine's default pools end at about thirty networks.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use bollard::{
    Docker,
    errors::Error,
    models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkDisconnectRequest},
    query_parameters::{InspectNetworkOptions, ListNetworksOptionsBuilder},
};

use super::{
    engine::{Engine, failed, status, whole},
    locks::KeyedLocks,
    names,
};
use crate::domain::TenantName;
use crate::runtime::RuntimeError;

/// How often, and how long in between, a network is waited for that is to have no endpoints any more.
const FREE_TRIES: u32 = 12;
const FREE_PAUSE: std::time::Duration = std::time::Duration::from_millis(250);
/// How many addresses or bridge names are tried before giving up; each try that fails means another Berth was quicker.
const ATTEMPTS: u32 = 16;
/// Prefix length of a tenant's network: up to 253 containers.
const TENANT_PREFIX: u8 = 24;

/// An IPv4 network, `10.200.0.0/14`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    fn new(base: u32, prefix: u8) -> Self {
        Self { base: base & mask(prefix), prefix }
    }

    fn overlaps(self, other: Self) -> bool {
        let wider = mask(self.prefix.min(other.prefix));
        self.base & wider == other.base & wider
    }

    /// The tenant networks of this pool that overlap none of `taken`, beginning somewhere that `seed` decides, so that Berths that
    /// share a pool rarely want the same one.
    pub fn free(self, seed: u32, taken: &[Self]) -> impl Iterator<Item = Self> {
        let count = 1_u32 << (TENANT_PREFIX - self.prefix);
        let size = 32 - TENANT_PREFIX;
        (0..count)
            .map(move |step| Self::new(self.base + ((seed.wrapping_add(step) % count) << size), TENANT_PREFIX))
            .filter(|subnet| !taken.iter().any(|other| other.overlaps(*subnet)))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(base, prefix)| {
            Some((base.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok().filter(|prefix| *prefix <= 32)?))
        });
        let (base, prefix) =
            parsed.ok_or_else(|| format!("{text:?} is not an IPv4 network; write it as 10.200.0.0/14"))?;
        Ok(Self::new(base.into(), prefix))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

/// The pool for tenants' networks: between a /8 and a /24.
pub fn parse_pool(text: &str) -> Result<Subnet, String> {
    let pool: Subnet = text.parse()?;
    if (8..=TENANT_PREFIX).contains(&pool.prefix) {
        Ok(pool)
    } else {
        Err(format!("the network pool {text} must be between a /8 and a /{TENANT_PREFIX}"))
    }
}

/// The host's routes, from `/proc/net/route`. A route as wide as the pool or wider (the default route, a VPN's 10.0.0.0/8) is no
/// conflict: a tenant's own, narrower route wins over it.
fn routes(table: &str, pool: Subnet) -> Vec<Subnet> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(|value| u32::from_be_bytes(value.to_ne_bytes()));
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let base = number(fields.next()?)?;
        let mask = number(fields.nth(5)?)?;
        Some(Subnet::new(base, u8::try_from(mask.leading_ones()).ok()?))
    };
    table.lines().skip(1).filter_map(parse).filter(|route| route.prefix > pool.prefix).collect()
}

/// Tenants' networks, made once and remembered.
#[derive(Debug)]
pub struct Networks {
    pool: Subnet,
    turns: KeyedLocks<TenantName>,
    ready: Mutex<HashSet<TenantName>>,
    /// Tenants whose networks this process has asked for.
    used: Mutex<HashSet<TenantName>>,
    creation: tokio::sync::Mutex<()>,
}

impl Networks {
    /// Networks out of `pool`.
    pub fn new(pool: Subnet) -> Self {
        Self {
            pool,
            turns: KeyedLocks::default(),
            ready: Mutex::default(),
            used: Mutex::default(),
            creation: tokio::sync::Mutex::default(),
        }
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, HashSet<TenantName>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> std::sync::MutexGuard<'_, HashSet<TenantName>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the network is known to be there.
    pub fn is_ready(&self, tenant: &TenantName) -> bool {
        self.ready().contains(tenant)
    }

    /// Forgets that the network is there, as when somebody removed it.
    pub fn doubt(&self, tenant: &TenantName) {
        self.ready().remove(tenant);
    }

    /// Makes the tenant's network unless it is there.
    pub async fn ensure(&self, engine: &Engine, tenant: &TenantName) -> Result<(), RuntimeError> {
        let _turn = self.turns.lock(tenant.clone()).await;
        self.used().insert(tenant.clone());
        let name = engine.recipe.names.network(tenant);
        match whole(engine.docker.inspect_network(&name, None)).await {
            Ok(_) => {}
            Err(error) if status(&error) == Some(404) => self.create(engine, tenant, &name).await?,
            Err(error) => return Err(failed(&format!("inspecting network {name}"), &error)),
        }
        self.ready().insert(tenant.clone());
        Ok(())
    }

    async fn create(&self, engine: &Engine, tenant: &TenantName, name: &str) -> Result<(), RuntimeError> {
        let names = &engine.recipe.names;
        let seed = seed_of(&[names.tag(), tenant.as_str()]);
        let mut refusal = String::new();
        let mut bridge = 0;
        let mut refused = Vec::new();
        // Two tenants' networks being made at once would want the same addresses.
        let _alone = self.creation.lock().await;
        for _ in 0..ATTEMPTS {
            // Looked up each time: a refusal means that the world has changed since. A network being made by another Berth is not listed yet.
            let mut taken = self.taken(engine).await?;
            taken.extend(&refused);
            let Some(subnet) = self.pool.free(seed, &taken).next() else {
                return Err(RuntimeError::Refused(format!(
                    "no free network is left in {} for tenant {tenant}; give Berth a larger `network_pool`",
                    self.pool
                )));
            };
            match whole(engine.docker.create_network(request(names, tenant, name, subnet, bridge))).await {
                Ok(_) => return Ok(()),
                Err(error) if matches!(status(&error), Some(403 | 409 | 500)) => {
                    refusal = error.to_string();
                    // Two tenants' bridge names may collide; another Berth process may have made this very network.
                    if refusal.contains("bridge name") {
                        bridge += 1;
                    } else {
                        refused.push(subnet);
                    }
                    if whole(engine.docker.inspect_network(name, None)).await.is_ok() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(failed(&format!("making network {name}"), &error)),
            }
        }
        Err(RuntimeError::Refused(format!("no network could be made for tenant {tenant}: {refusal}")))
    }

    async fn taken(&self, engine: &Engine) -> Result<Vec<Subnet>, RuntimeError> {
        let all = whole(engine.docker.list_networks(None)).await;
        let all = all.map_err(|error| failed("listing networks", &error))?;
        let ranges = all.into_iter().filter_map(|network| network.ipam?.config).flatten();
        let mut taken: Vec<Subnet> = ranges.filter_map(|range| range.subnet?.parse().ok()).collect();
        let table = tokio::fs::read_to_string("/proc/net/route").await.unwrap_or_default();
        taken.extend(routes(&table, self.pool));
        Ok(taken)
    }

    /// Removes the tenant's network.
    pub async fn forget(&self, engine: &Engine, tenant: &TenantName) -> Result<(), RuntimeError> {
        let _turn = self.turns.lock(tenant.clone()).await;
        self.doubt(tenant);
        self.used().remove(tenant);
        let filters = HashMap::from([("label", engine.recipe.names.owner_filter(tenant, None))]);
        let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
        let found =
            engine.docker.list_networks(Some(options)).await.map_err(|error| failed("listing networks", &error))?;
        for id in found.into_iter().filter_map(|network| network.id) {
            remove_when_free(&engine.docker, &id)
                .await
                .map_err(|error| failed(&format!("removing the network of tenant {tenant}"), &error))?;
        }
        Ok(())
    }

    /// Removes the network of a tenant that is said to be gone; returns whether it did. Not when this process has asked for it: then
    /// the tenant has come since that was found. Whoever asks for it from now on makes it anew.
    ///
    /// # Errors
    /// As [`remove`].
    pub(super) async fn remove_left(&self, engine: &Engine, tenant: &TenantName, id: &str) -> Result<bool, Error> {
        let _turn = self.turns.lock(tenant.clone()).await;
        if self.used().contains(tenant) {
            return Ok(false);
        }
        remove(&engine.docker, id).await.map(|()| true)
    }
}

/// As [`remove`], of a network whose containers have just been removed: the engine may take a moment to let go of the last of their endpoints,
/// of which it tells nobody.
async fn remove_when_free(docker: &Docker, id: &str) -> Result<(), Error> {
    for _ in 0..FREE_TRIES {
        match remove(docker, id).await {
            Err(error) if status(&error) == Some(403) => tokio::time::sleep(FREE_PAUSE).await,
            answer => return answer,
        }
    }
    remove(docker, id).await
}

/// Removes a network that nothing uses. The engine can keep the endpoint of a container that it has removed, and does not remove a
/// network that has any: such are cut off first.
///
/// # Errors
/// Those of the engine, a network in use among them; that it is not there is none.
pub(super) async fn remove(docker: &Docker, id: &str) -> Result<(), Error> {
    match docker.remove_network(id).await {
        Err(error) if status(&error) == Some(403) => cut_off(docker, id).await?,
        answer => return unless_gone(answer),
    }
    unless_gone(docker.remove_network(id).await)
}

async fn cut_off(docker: &Docker, id: &str) -> Result<(), Error> {
    let network = docker.inspect_network(id, None::<InspectNetworkOptions>).await?;
    // The engine lists the endpoint of a container that is gone by its own id. One of a container that is there is in use.
    let of_nothing = |(id, _): &(String, _)| id.starts_with("ep-");
    for (id_of_endpoint, endpoint) in network.containers.unwrap_or_default().into_iter().filter(of_nothing) {
        // It goes by the name that the container had.
        let name = endpoint.name.unwrap_or(id_of_endpoint);
        unless_gone(
            docker.disconnect_network(id, NetworkDisconnectRequest { container: name, force: Some(true) }).await,
        )?;
    }
    Ok(())
}

fn unless_gone(answer: Result<(), Error>) -> Result<(), Error> {
    answer.or_else(|error| if status(&error) == Some(404) { Ok(()) } else { Err(error) })
}

fn request(names: &names::Names, tenant: &TenantName, name: &str, subnet: Subnet, bridge: u32) -> NetworkCreateRequest {
    let range = IpamConfig { subnet: Some(subnet.to_string()), ..Default::default() };
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        enable_ipv6: Some(false),
        ipam: Some(Ipam { config: Some(vec![range]), ..Default::default() }),
        options: Some(HashMap::from([("com.docker.network.bridge.name".to_owned(), names.bridge(tenant, bridge))])),
        labels: Some(names.owner_labels(tenant, None)),
        ..Default::default()
    }
}

fn seed_of(parts: &[&str]) -> u32 {
    names::short_hash(parts, 8).bytes().fold(0, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn subnets(texts: &[&str]) -> Vec<Subnet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn free_networks() {
        let pool = parse_pool("10.200.0.0/22").unwrap();
        let free = |seed, taken: &[&str]| {
            pool.free(seed, &subnets(taken)).map(|subnet| subnet.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(free(0, &[]), ["10.200.0.0/24", "10.200.1.0/24", "10.200.2.0/24", "10.200.3.0/24"]);
        assert_eq!(free(6, &[])[0], "10.200.2.0/24");
        assert_eq!(free(0, &["10.200.0.0/23", "10.200.3.128/25", "192.168.0.0/16"]), ["10.200.2.0/24"]);
        assert!(free(0, &["10.0.0.0/8"]).is_empty());
        assert_eq!(parse_pool("10.200.0.0/14").unwrap().free(0, &[]).count(), 1024);
    }

    #[test]
    fn pools_that_are_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/25", "0.0.0.0/0", "x/16", "fd00::/16"] {
            assert!(parse_pool(text).is_err(), "{text} was taken");
        }
        assert_eq!(parse_pool("10.201.7.9/16").unwrap().to_string(), "10.201.0.0/16");
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn host_routes() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
                     eth1\t0003C80A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                     torn\n";
        assert_eq!(routes(table, parse_pool("10.200.0.0/14").unwrap()), subnets(&["10.200.3.0/24"]));
    }

    #[tokio::test]
    async fn a_network_that_has_come_into_use_is_not_taken_for_one_that_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        let engine = testing::engine(&socket);
        std::fs::remove_file(&socket).unwrap();
        let answers = testing::Answers::serve(&socket, |request| {
            let deletes = request.starts_with("DELETE ");
            Some(if deletes { testing::NO_CONTENT.to_owned() } else { testing::json(r#"{"Name":"n","Id":"n1"}"#) })
        });
        let networks = Networks::new(parse_pool("10.200.0.0/22").unwrap());
        let (came, gone): (TenantName, TenantName) = ("came".parse().unwrap(), "gone".parse().unwrap());
        networks.ensure(&engine, &came).await.unwrap();
        networks.doubt(&came);
        assert!(!networks.remove_left(&engine, &came, "n1").await.unwrap());
        assert!(networks.remove_left(&engine, &gone, "n2").await.unwrap());
        let removed: Vec<String> = answers.asked().into_iter().filter(|asked| asked.starts_with("DELETE ")).collect();
        assert!(removed.len() == 1 && removed[0].contains("/networks/n2"), "{removed:?}");
    }
}
