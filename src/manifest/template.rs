//! The manifest that `apps create` prints, ready to be committed.

use crate::domain::AppRef;

/// A `berth.yaml` for `app`: what is certain is set, the rest stands commented out with an example.
///
/// `token` is the project token; it is text of Berth's own making, in an alphabet that needs no quotes.
pub fn template(app: &AppRef, token: &str) -> String {
    format!(
        "\
# What this repository is, how it is built and how it runs. `berth validate` checks this file.
app: {app}
auth: {token}  # signed, not a secret: proves that this repository belongs to the app

# Everything below has a default: processes come from the Procfile, else from the buildpack.
# Remove the `#` in front of what you need.

#build:
#  root: services/web        # the app lives in a subdirectory
#  buildpacks: [nodejs]      # instead of detection
#  env:
#    NODE_ENV: production    # seen by the build only; the running app gets `config set`

#processes:
#  web:
#    command: node server.js # listens on $PORT
#    replicas: 2
#    cpu: 0.5                # cores
#    memory: 256Mi
#    health: {{path: /healthz, interval: 5s, timeout: 2s, grace: 30s, failures: 3}}
#  worker: node worker.js

#release: node migrate.js    # runs once in the new image before any replica

#cron:                       # jobs that run by the clock
#  nightly: {{schedule: '@daily', command: node cleanup.js}}

#upgrade: {{min_healthy: 100%, max_over: 100%, progress_deadline: 10m}}

#environments:               # what is different in one of them
#  prod:
#    processes: {{web: {{replicas: 4}}}}
#    domains: [shop.example.com]
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{FILE_NAME, parse};

    #[test]
    fn it_is_valid_as_printed_and_with_every_example_taken() {
        let app: AppRef = "acme/shop".parse().unwrap();
        let text = template(&app, &format!("bt1.e30.{}", "A".repeat(86)));
        assert_eq!(parse(&text, FILE_NAME).unwrap().app(), Some(&app));

        let uncomment = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        let full: String = text.lines().map(uncomment).collect();
        let manifest = parse(&full, FILE_NAME).unwrap_or_else(|p| panic!("{}", crate::manifest::render_problems(&p)));
        let definition = manifest.for_environment(&"prod".parse().unwrap());
        assert_eq!(definition.processes.len(), 2);
        assert_eq!(definition.domains, ["shop.example.com"]);
        assert_eq!(definition.build.root, "services/web");
    }
}
