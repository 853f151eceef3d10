#!/usr/bin/env python3
# chaos: schemathesis asks the API all that its document allows, and what it does not: no server error, nothing undocumented
import pathlib
import re
import subprocess
import sys

from harness import ROOT, eventually, main, run, say

# Examples of each operation, for one run.
EXAMPLES = 20
# What is looked at in each answer. An id may well be one that does not exist: that positive examples are taken is not looked at.
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
# What stands in paths to ask for what is there.
SEEDED = """
[parameters]
"path.tenant" = "acme"
"path.app" = "shop"
"path.env" = "dev"
"""
# Changes that stay in the store.
CHEAP = r"/(config|domains|members)(/[^/]*)?$"
# Requests of a user a second: this one is not to be held up.
SETTINGS = {"BERTH__API__RATE_PER_USER": "10000"}


def tool():
    """schemathesis, in an environment of its own."""
    venv = ROOT / "target/conformance"
    program = venv / "bin/schemathesis"
    if not program.exists():
        say("Installing schemathesis")
        run([sys.executable, "-m", "venv", venv], timeout=300).ok()
        run([venv / "bin/pip", "install", "--quiet", "schemathesis"], timeout=900).ok()
    return program


def ask(chaos, what, words):
    """Runs schemathesis and gives how many cases it made; there are some."""
    asked = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=3600, cwd=chaos.work)
    output = asked.stdout + asked.stderr
    say(f"{what}:\n{output[-6000:]}")
    cases = re.search(r"(\d[\d,]*) generated", output)
    count = int(cases[1].replace(",", "")) if cases else 0
    chaos.check(asked.returncode == 0, f"{what}: schemathesis ended with status {asked.returncode}")
    chaos.check(count > 0, f"{what}: schemathesis asked nothing")
    return count


def scenario(chaos):
    from harness import Platform

    program = tool()
    platform = Platform(chaos, settings=SETTINGS).begin()
    app = platform.app("acme/shop")
    app.push().ok()
    token = platform.ssh("tokens", "create", "conformance", "--scope", "full", "--json").ok().json()["token"]
    base = f"http://127.0.0.1:{platform.api_port}"
    eventually("the API answers", lambda: run(["curl", "-sf", f"{base}/openapi.json", "-o", "/dev/null"]).status == 0)
    words = [program, "run", f"{base}/openapi.json", "-H", f"Authorization: Bearer {token}", "--checks", CHECKS, "--max-examples", EXAMPLES,
             "--seed", chaos.seed, "--continue-on-failure", "--no-color", "--request-timeout", 70,
             # It says of its own generator that it throws much away; what it does send is looked at all the same.
             "--suppress-health-check", "filter_too_much"]
    # Its own token and key are not to be revoked in the middle.
    chaos.figures["cases"] = ask(chaos, "any names", [*words, "--exclude-path-regex", "/metrics$", "--exclude-method", "DELETE"])
    seeded = chaos.work / "seeded.toml"
    seeded.write_text(SEEDED)
    # What is read of what is there, and what may be changed in it without asking other machines for anything or filling this one.
    words[1:1] = ["--config-file", seeded]
    chaos.figures["cases_reading"] = ask(chaos, "names that are there, reading", [*words, "--include-method", "GET"])
    changing = ["--include-path-regex", CHEAP, "--exclude-method", "DELETE", "--exclude-method", "GET"]
    chaos.figures["cases_changing"] = ask(chaos, "names that are there, changing", [*words, *changing])
    chaos.check(platform.alive("serve"), "berth serve has ended")
    panics = [line for line in platform.log("serve").read_text(errors="replace").splitlines() if "panicked" in line]
    chaos.check(not panics, f"it panicked: {panics[:3]}")


main(scenario)
