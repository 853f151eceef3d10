// fetch.js NAME VERSION DESTINATION [HASH]: brings a package of the registry, without what it depends on, into a directory.
'use strict'
const { Refusal, fetchPackage } = require('./registry.js')

const [name, version, destination, hash] = process.argv.slice(2)
fetchPackage(name, version, destination, hash).catch((problem) => {
  const lines = problem instanceof Refusal ? problem.lines : [String(problem.stack || problem)]
  for (const line of lines) console.error(` !     ${line}`)
  process.exitCode = 1
})
