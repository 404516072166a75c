// How our own TypeScript client waits: with a simulated service and a clock that only waiting advances.
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Client, StillRunning } from './client/index.js'

const COMMENT_MS = 5
const job = { id: 'a'.repeat(32), state: 'in_progress' }
let callsLeft = 600
let looks = 0
let endsAt = Infinity // the look at which the job has ended
let hasStream = false

const server = createServer((request, response) => {
  if (request.url === '/api/v1/events/' && hasStream) {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' }).write('id: 1-0\n\n')
    const comments = setInterval(() => response.write(':\n\n'), COMMENT_MS)
    request.on('close', () => clearInterval(comments))
  } else if (request.url === '/api/v1/events/') {
    response.writeHead(409, { 'Content-Type': 'application/problem+json' }).end('{"code": "too_many_streams"}')
  } else {
    looks += 1
    const body = JSON.stringify({ ...job, state: looks >= endsAt ? 'completed' : job.state })
    response.writeHead(200, { RateLimit: `"token";r=${callsLeft};t=60` }).end(body)
  }
})
await new Promise<void>((listens) => server.listen(0, '127.0.0.1', listens))
const client = new Client(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, 'vps_x')

// the client's waits pass at once and are recorded
const later = globalThis.setTimeout
const clock = Date.now
let waited: number[] = []
let passed = 0
const fast = ((done: (...given: unknown[]) => void, milliseconds: number, ...given: unknown[]) => {
  const isPause = milliseconds >= 1000 && milliseconds <= 15_000 && given.length === 0 // others are limits of fetch
  if (!isPause) return later(done, milliseconds, ...given)
  waited.push(milliseconds / 1000)
  passed += milliseconds
  return later(done, 0)
}) as typeof globalThis.setTimeout
globalThis.setTimeout = fast
Date.now = () => passed

async function wait(how: { timeoutSeconds?: number } = {}): Promise<{ end: string; waited: number[]; looks: number }> {
  waited = []
  looks = 0
  passed = 0
  const end = await client.waitForJob(job.id, how).then(
    (ended) => ended.state,
    (error: unknown) => (error instanceof StillRunning ? `still ${error.job.state}` : String(error)),
  )
  return { end, waited, looks }
}

endsAt = 9
const polled = await wait()
callsLeft = 50
endsAt = Infinity
const still = await wait({ timeoutSeconds: 40 })
// a stream that is open but silent: each reading of the clock is seconds later
hasStream = true
callsLeft = 600
endsAt = 4
let now = 0
Date.now = () => (now += 10_000)
const silent = await wait()
Date.now = clock
globalThis.setTimeout = later
server.closeAllConnections()
server.close()
console.log(JSON.stringify({ polled: polled.waited, ended: polled.end, still: still.end, rare: still.waited, silent }))
