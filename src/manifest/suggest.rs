//! "Did you mean": the nearest allowed key, and what people bring from elsewhere.

use super::source::quote;

/// Longest key that is compared; nobody mistypes a longer one.
const LONGEST: usize = 64;

/// The candidate that `given` most likely stands for.
pub(super) fn nearest<'c>(given: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    if given.len() > LONGEST {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let given = plain(given);
    let most = if given.len() <= 3 { 1 } else { 2 };
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&given, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= most && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Advice for a name that only its capital letters, blanks or underscores make invalid.
pub(super) fn for_name<T: std::str::FromStr>(given: &str) -> Option<String> {
    let lower = given.to_lowercase().replace([' ', '_', '.'], "-");
    (given.len() <= LONGEST && lower.parse::<T>().is_ok()).then(|| format!("did you mean {}?", quote(&lower)))
}

/// What to write instead of `key` in the mapping at `path`, whose keys are `allowed`.
pub(super) fn for_key(path: &str, key: &str, allowed: &[&str]) -> String {
    // Under `environments.NAME` the same holds as at the top.
    let section = match path.strip_prefix("environments.") {
        Some(rest) => rest.split_once('.').map_or("", |(_, section)| section),
        None => path,
    };
    if let Some(advice) = from_elsewhere(section, key) {
        return advice.to_owned();
    }
    match nearest(key, allowed.iter().copied()) {
        Some(candidate) => format!("did you mean {}?", quote(candidate)),
        None => format!("its keys are {}", allowed.join(", ")),
    }
}

/// Keys known from Heroku, Docker Compose and Kubernetes.
fn from_elsewhere(section: &str, key: &str) -> Option<&'static str> {
    let process = section.strip_prefix("processes.").is_some_and(|name| !name.contains('.'));
    let job = section.strip_prefix("cron.").is_some_and(|name| !name.contains('.'));
    Some(match (section, key) {
        ("", "domains" | "domain" | "hosts") => {
            "domains belong to one environment: `environments: {prod: {domains: [shop.example.com]}}`"
        }
        ("", "env" | "environment" | "config" | "vars") => {
            "variables of the running app are set with `config set ENV KEY=value`, those of the build under `build.env`"
        }
        ("", "services" | "formation") => "did you mean `processes`?",
        ("", "buildpacks" | "buildpack" | "root") => "it belongs under `build:`",
        ("", "web" | "worker" | "command") => "it belongs under `processes:`",
        ("", "auth" | "app") => "it is said once, at the top level",
        _ if process && matches!(key, "env" | "environment") => {
            "variables of the running app are set with `config set ENV KEY=value`"
        }
        _ if process && matches!(key, "cmd" | "run" | "start" | "entrypoint" | "exec") => "did you mean `command`?",
        _ if process && matches!(key, "instances" | "count" | "quantity" | "scale") => "did you mean `replicas`?",
        _ if process && matches!(key, "mem" | "ram") => "did you mean `memory`?",
        _ if process && matches!(key, "healthcheck" | "readiness" | "probe") => "did you mean `health`?",
        _ if job && matches!(key, "cron" | "when" | "every" | "at") => "did you mean `schedule`?",
        _ if job && matches!(key, "concurrency" | "concurrencyPolicy" | "concurrency_policy") => {
            "did you mean `overlap`? Its values are skip, replace and allow"
        }
        _ if job && matches!(key, "tz" | "time_zone" | "timeZone") => "did you mean `timezone`?",
        _ if job && matches!(key, "cmd" | "run" | "exec") => "did you mean `command`?",
        ("", "jobs" | "crons" | "schedule" | "scheduler") => "did you mean `cron`?",
        _ if process && key == "ports" => "did you mean `port`?",
        _ => return None,
    })
}

/// A number in another notation, as Kubernetes writes cores: `500m` → 0.5.
pub(super) fn for_number(text: &str) -> Option<String> {
    if let Some(millis) = text.strip_suffix('m').and_then(|digits| digits.parse::<u32>().ok()) {
        return Some(format!("write cores as a number: {}", f64::from(millis) / 1000.0));
    }
    let number: f64 = text.parse().ok()?;
    number.is_finite().then(|| format!("write it without quotes: {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_find_their_key_and_others_do_not() {
        let keys = ["command", "replicas", "cpu", "memory", "port", "health"];
        let cases = [
            ("comand", Some("command")),
            ("Replica", Some("replicas")),
            ("memmory", Some("memory")),
            ("cpus", Some("cpu")),
            ("pu", Some("cpu")),
            ("volume", None),
            ("x", None),
        ];
        for (given, want) in cases {
            assert_eq!(nearest(given, keys), want, "{given}");
        }
        assert_eq!(nearest("minHealthy", ["min_healthy", "max_over"]), Some("min_healthy"));
        assert_eq!(nearest(&"a".repeat(100_000), keys), None);
    }
}
