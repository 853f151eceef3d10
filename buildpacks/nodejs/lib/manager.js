// Which package manager installs an app, and in which version.
'use strict'
const fs = require('fs')
const path = require('path')
const { Refusal, semver, versionsOf } = require('./registry.js')

const LOCKS = {
  'package-lock.json': 'npm', 'npm-shrinkwrap.json': 'npm', 'yarn.lock': 'yarn', 'pnpm-lock.yaml': 'pnpm',
  'bun.lock': 'bun', 'bun.lockb': 'bun',
}

// The npm that goes with a Node, the first range that fits.
const NPM_OF_NODE = [
  ['<15', '6.14.18'], ['<18', '8.19.4'], ['<18.17 || >=19 <20.5', '9.9.4'], ['<22', '10.8.2'], ['<24', '10.9.4'], ['*', '11.17.0'],
]

// The pnpm that wrote a lock file, by its lockfileVersion.
const PNPM_OF_LOCK = { 5: '<3', 5.1: '3 - 5', 5.2: '5', 5.3: '6', 5.4: '7', '6.0': '8', 6.1: '8', '9.0': '9' }

// The yarn that wrote a lock file, by __metadata.version; newer ones: the newest there is.
const BERRY_OF_LOCK = { 4: '2', 5: '3', 6: '3', 7: '3', 8: '4' }

const read = (dir, file) => {
  try { return fs.readFileSync(path.join(dir, file), 'utf8') } catch { return '' }
}

const lockFile = (dir) => {
  const found = Object.keys(LOCKS).filter((file) => fs.existsSync(path.join(dir, file)))
  const managers = new Set(found.map((file) => LOCKS[file]))
  if (managers.size > 1) {
    throw new Refusal(`There are lock files of several package managers: ${found.join(', ')}.`,
      'They can disagree, so Berth will not choose. Keep the one you use and remove the others: git rm --cached FILE')
  }
  if (managers.has('bun')) {
    throw new Refusal(`${found[0]} belongs to bun, which Berth does not run.`, 'Add a lock file of npm, yarn or pnpm instead.')
  }
  return found.includes('npm-shrinkwrap.json') ? 'npm-shrinkwrap.json' : found[0]
}

// packageManager as {name, version, hash}.
const pinned = (manifest) => {
  const text = manifest.packageManager
  if (text === undefined) return undefined
  const [, name, version, hash] = /^(npm|yarn|pnpm)@([^+]+)(?:\+(.+))?$/.exec(String(text)) || []
  if (!name || !semver.valid(version)) {
    throw new Refusal(`packageManager in package.json is "${text}".`, 'It must name npm, yarn or pnpm and an exact version, such as "pnpm@9.15.9".')
  }
  if (hash && !/^(sha1|sha224|sha256|sha384|sha512)\.[0-9a-f]+$/.test(hash)) {
    throw new Refusal(`The hash in packageManager in package.json, "${hash}", is none.`, 'It looks like "sha512." and hexadecimal digits; correct it, or leave it out.')
  }
  return { name, version, hash }
}

const chooseName = (manifest, pin, lock) => {
  const engines = ['yarn', 'pnpm'].filter((name) => manifest.engines && manifest.engines[name])
  const name = pin ? pin.name : lock ? LOCKS[lock] : engines.length === 1 ? engines[0] : 'npm'
  if (lock && LOCKS[lock] !== name) {
    throw new Refusal(`packageManager in package.json asks for ${name}, but the lock file is ${lock}, of ${LOCKS[lock]}.`,
      `Make a lock file with ${name} and remove ${lock}, or correct packageManager.`)
  }
  return name
}

// The range of versions that can read the lock file, and the reason.
const fromLock = (dir, name, lock, nodeVersion) => {
  if (name === 'npm') {
    return { range: NPM_OF_NODE.find(([range]) => semver.satisfies(nodeVersion, range))[1], why: `goes with Node ${semver.major(nodeVersion)}` }
  }
  const text = lock ? read(dir, lock) : ''
  if (name === 'yarn') {
    const version = (/^__metadata:\s*\n\s+version: "?(\d+)/m.exec(text) || [])[1]
    if (version) return { range: BERRY_OF_LOCK[version] || '>=4', why: `wrote yarn.lock (version ${version})`, berry: true }
    if (!lock && fs.existsSync(path.join(dir, '.yarnrc.yml'))) return { range: '4', why: 'the newest', berry: true }
    return { range: '1.22', why: lock ? 'wrote yarn.lock (version 1)' : 'the newest' }
  }
  const version = (/^lockfileVersion: ['"]?([\d.]+)/m.exec(text) || [])[1]
  if (version === '9.0') {
    // Versions 9 to 12 write the same format. Settings that only later ones read give them away.
    const settings = read(dir, 'pnpm-workspace.yaml').match(/^[A-Za-z]+(?=:)/gm) || []
    if (settings.includes('allowBuilds')) return { range: '>=11', why: 'pnpm-workspace.yaml has allowBuilds' }
    if (settings.some((key) => !['packages', 'catalog', 'catalogs'].includes(key)) || (manifestOf(dir).pnpm || {}).onlyBuiltDependencies) {
      return { range: '10', why: 'lockfileVersion 9.0, and settings that pnpm 10 introduced' }
    }
  }
  return { range: PNPM_OF_LOCK[version] || '9', why: version ? `lockfileVersion ${version}` : 'no lock file' }
}

const manifestOf = (dir) => {
  try { return JSON.parse(read(dir, 'package.json')) } catch { return {} }
}

// The version to use: `preferred` (a version or a range, from the lock file) where it satisfies `text` (what the app asks for, if
// anything), else the newest that both allow, else the newest that `text` allows.
const resolve = async ({ npmName, name, text, where, preferred }, cacheDir) => {
  if (semver.valid(preferred) && (!text || semver.satisfies(preferred, text))) return preferred
  const versions = await versionsOf(npmName, cacheDir)
  const newest = (...ranges) => versions.filter((version) => ranges.every((range) => semver.satisfies(version, range))).at(-1)
  const wanted = newest(text || '*', semver.valid(preferred) ? '*' : preferred) || (text && newest(text))
  if (wanted) return wanted
  const asked = semver.coerce(text)
  const near = [...new Set([asked && newest(`${asked.major}`), versions.at(-1)].filter(Boolean))]
  throw new Refusal(`${name} version "${text}" (${where} in package.json) does not exist.`, `Nearby: ${near.join(', ')}.`)
}

// Whether the app's yarn is berry (2 or later); package.json and yarn.lock must agree.
const isBerry = (lock, pin, engine, writer) => {
  const written = Boolean(writer.berry)
  const generation = (berry) => (berry ? '2 or later' : '1')
  if (pin) {
    const berry = semver.major(pin.version) > 1
    if (lock && berry !== written) {
      throw new Refusal(`packageManager in package.json asks for yarn ${pin.version}, but yarn.lock was written by yarn ${generation(written)}.`,
        `Run yarn install with yarn ${pin.version} and commit yarn.lock.`)
    }
    return berry
  }
  if (engine && lock && !semver.intersects(engine, written ? '>=2' : '1')) {
    throw new Refusal(`engines.yarn in package.json asks for yarn ${engine}, but yarn.lock was written by yarn ${generation(written)}.`)
  }
  return written || Boolean(engine && !lock && !semver.intersects(engine, '1'))
}

// The yarn that is committed to the repository, if .yarnrc.yml names one.
const committedYarn = (dir) => {
  const named = (/^yarnPath:\s*["']?([^"'\n]+)/m.exec(read(dir, '.yarnrc.yml')) || [])[1]
  const file = named && path.normalize(named.trim())
  if (!file || path.isAbsolute(file) || file.startsWith('..') || !fs.existsSync(path.join(dir, file))) return undefined
  return { file, version: (/yarn-(\d[\w.-]*)\.c?js$/.exec(file) || [])[1] || 'committed' }
}

// {name: npm|yarn|pnpm, berry, npmName, version, hash, lock, why, bundled}; `bundled` is the file of a yarn committed to the repository.
// `isCached(npmName, version)` spares asking the registry.
const packageManager = async (dir, manifest, nodeVersion, cacheDir, isCached) => {
  const lock = lockFile(dir)
  const pin = pinned(manifest)
  const name = chooseName(manifest, pin, lock)
  const writer = fromLock(dir, name, lock, nodeVersion)
  const engine = manifest.engines && manifest.engines[name] !== undefined ? String(manifest.engines[name]) : undefined
  if (engine !== undefined && semver.validRange(engine) === null) {
    throw new Refusal(`engines.${name} in package.json is "${engine}", which is not a version or a range of versions.`)
  }
  const berry = name === 'yarn' && isBerry(lock, pin, engine, writer)
  const manager = { name, berry, npmName: berry ? '@yarnpkg/cli-dist' : name, lock, bundled: '' }
  const committed = berry && committedYarn(dir)
  if (committed) return { ...manager, version: committed.version, why: 'yarnPath in .yarnrc.yml', bundled: committed.file }
  if (pin) {
    const known = semver.prerelease(pin.version) || isCached(manager.npmName, pin.version)
    if (!known) await resolve({ ...manager, text: pin.version, where: 'packageManager', preferred: '*' }, cacheDir)
    return { ...manager, version: pin.version, hash: pin.hash, why: 'packageManager in package.json' }
  }
  const preferred = berry && !writer.berry ? engine : writer.range
  const version = await resolve({ ...manager, text: engine, where: `engines.${name}`, preferred }, cacheDir)
  return { ...manager, version, why: engine ? `engines.${name} in package.json` : writer.why }
}

module.exports = { packageManager, defaultNpm: (nodeVersion) => fromLock('', 'npm', undefined, nodeVersion).range }
