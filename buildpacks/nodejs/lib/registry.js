// The package registry, through the libraries of the npm in the build stack: which versions there are, and fetching one.
'use strict'
const fs = require('fs')
const path = require('path')
const crypto = require('crypto')
const { execFileSync, spawn } = require('child_process')
const fromNpm = require('module').createRequire('/opt/node/lib/node_modules/npm/package.json')
const semver = fromNpm('semver')
const pacote = fromNpm('pacote')

const LIST_LIFETIME_MS = 3600 * 1000

// A failure that the person who pushes can do something about; `lines` are shown as they are.
class Refusal extends Error {
  constructor(...lines) {
    super(lines.join('\n'))
    this.lines = lines
  }
}

const registry = process.env.npm_config_registry || process.env.NPM_CONFIG_REGISTRY
const options = {
  cache: '/tmp/berth-npm', packumentCache: new Map(), timeout: 60_000, fetchRetries: 2, retry: { retries: 2, minTimeout: 1000 },
  ...(registry ? { registry } : {}),
}

// A name beside `file` for the time until it is whole. Builds of one app share a cache, and in each container process ids begin anew.
const unique = (file) => `${file}.${crypto.randomUUID()}.tmp`

const writeAtomically = (file, content) => {
  fs.mkdirSync(path.dirname(file), { recursive: true })
  const temporary = unique(file)
  fs.writeFileSync(temporary, content)
  fs.renameSync(temporary, file)
}

// All releases of a package (no prereleases), oldest first. Kept for an hour; an older list serves when the registry does not.
const versionsOf = async (name, cacheDir) => {
  const file = path.join(cacheDir, 'versions', name.replace('/', '+') + '.json')
  let kept
  try {
    kept = JSON.parse(fs.readFileSync(file, 'utf8'))
    if (Date.now() - fs.statSync(file).mtimeMs < LIST_LIFETIME_MS) return kept
  } catch { kept = undefined }
  try {
    const packument = await pacote.packument(name, options)
    const releases = Object.keys(packument.versions).filter((version) => !semver.prerelease(version)).sort(semver.compare)
    try { writeAtomically(file, JSON.stringify(releases)) } catch { /* a cache that cannot be written is no reason to fail */ }
    return releases
  } catch (problem) {
    if (kept) return kept
    throw new Refusal(`The versions of ${name} cannot be listed: ${problem.message}`, 'The package registry did not answer; push again later.')
  }
}

const checkHash = (data, hash, what) => {
  const [algorithm, wanted] = hash.split('.')
  const found = crypto.createHash(algorithm).update(data).digest('hex')
  if (found !== wanted) {
    throw new Refusal(`${what} is not what packageManager in package.json says: its ${algorithm} is ${found}, not ${wanted}.`,
      'Correct the hash, or leave it out.')
  }
}

// Unpacks a package while it comes in. tar of its own, since it shares the work with a second core.
const extract = (spec, directory, integrity) => pacote.tarball.stream(spec, (archive) => new Promise((resolve, reject) => {
  fs.rmSync(directory, { recursive: true, force: true })
  fs.mkdirSync(directory, { recursive: true })
  const tar = spawn('tar', ['-xz', '--strip-components=1', '--no-same-owner', '-C', directory], { stdio: ['pipe', 'inherit', 'inherit'] })
  tar.on('error', reject)
  tar.on('exit', (status) => (status === 0 ? resolve() : reject(new Error(`its archive cannot be unpacked (tar: ${status})`))))
  tar.stdin.on('error', reject)
  archive.on('error', reject)
  archive.pipe(tar.stdin)
}), { ...options, integrity })

// Installs a package that needs others: its directory, with those below it.
const installWhole = (name, spec, directory) => {
  const prefix = `${directory}.d`
  const npm = ['/opt/node/bin/npm', 'install', '--global', '--prefix', prefix, '--no-audit', '--no-fund', '--loglevel=error', spec]
  execFileSync('/opt/node/bin/node', npm, { stdio: 'inherit', env: { ...process.env, PATH: `/opt/node/bin:${process.env.PATH}` } })
  fs.renameSync(`${prefix}/lib/node_modules/${name}`, directory)
  fs.rmSync(prefix, { recursive: true, force: true })
}

// Fetches NAME@VERSION into `destination` (which appears only when it is whole). `hash` is "ALGORITHM.HEX" as in packageManager.
const fetchPackage = async (name, version, destination, hash) => {
  const spec = `${name}@${version}`
  const temporary = unique(destination)
  try {
    if (hash && name !== '@yarnpkg/cli-dist') checkHash(await pacote.tarball(spec, options), hash, spec)
    const manifest = await pacote.manifest(spec, options)
    const standsAlone = manifest.bundleDependencies || !Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies }).length
    if (standsAlone) await extract(spec, temporary, manifest._integrity)
    else installWhole(name, spec, temporary)
  } catch (problem) {
    if (problem instanceof Refusal) throw problem
    throw new Refusal(`${spec} could not be fetched: ${problem.message}`)
  }
  // Corepack hashes the one file of yarn berry, not the archive it comes in.
  if (hash && name === '@yarnpkg/cli-dist') checkHash(fs.readFileSync(path.join(temporary, 'bin/yarn.js')), hash, spec)
  try {
    fs.renameSync(temporary, destination)
  } catch (problem) {
    fs.rmSync(temporary, { recursive: true, force: true })
    if (!fs.existsSync(destination)) throw problem // else: another build of this app was faster
  }
}

module.exports = { Refusal, semver, versionsOf, fetchPackage }
