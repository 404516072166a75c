// Waits for a job: with the event stream, or else by polling.
import { StillRunning } from './errors.ts'
import type { Job } from './models.ts'
import { callsLeft, LONGEST_WAIT_SECONDS, pause, type Wire } from './wire.ts'

const FIRST_POLL_SECONDS = 1
const SURE_MS = 30_000 // between two looks at the job while the stream is alive: an event may be lost
const FEW_CALLS = 60 // left of a token's 600 a minute: from there on polls are as rare as they get

export interface Event {
  event: string
  id?: string
  data: Record<string, unknown>
}

export function hasEnded(state: unknown): boolean {
  return state === 'completed' || state === 'failed'
}

/** Waits until the job is completed or failed, and returns it. */
export async function ended(wire: Wire, jobId: string, timeoutSeconds: number): Promise<Job> {
  const deadline = Date.now() + timeoutSeconds * 1000
  const left = () => Math.max(0, (deadline - Date.now()) / 1000)
  let job = await shown(wire, jobId)
  if (!hasEnded(job.body.state)) {
    try {
      await untilEvent(wire, jobId, left)
    } catch {
      // streams may be unavailable: too many streams, a proxy that buffers them, a connection that ended
    }
    job = await shown(wire, jobId)
  }
  for (let wait = FIRST_POLL_SECONDS; !hasEnded(job.body.state); wait = Math.min(1.5 * wait, LONGEST_WAIT_SECONDS)) {
    if (job.left < FEW_CALLS) wait = LONGEST_WAIT_SECONDS
    if (left() === 0) throw new StillRunning(job.body)
    await pause(Math.min(wait, left()))
    job = await shown(wire, jobId)
  }
  return job.body
}

async function shown(wire: Wire, jobId: string): Promise<{ body: Job; left: number }> {
  const answer = await wire.call('GET', `jobs/${jobId}/`)
  return { body: answer.body as Job, left: callsLeft(answer.headers) ?? Infinity }
}

/** Returns when the job has ended, or when the stream or the time ends. */
async function untilEvent(wire: Wire, jobId: string, left: () => number): Promise<void> {
  const lines = wire.stream('events/', {}, left())
  let looked = Date.now()
  try {
    await lines.next() // a stream begins with an ID
    if (hasEnded((await shown(wire, jobId)).body.state)) return // before the stream was open
    for await (const { event, data } of events(lines)) {
      if (event === 'missed' || left() === 0) return
      if (data['job_id'] === jobId && hasEnded(data['state'])) return
      if (Date.now() - looked < SURE_MS) continue
      if (hasEnded((await shown(wire, jobId)).body.state)) return
      looked = Date.now()
    }
  } finally {
    await lines.return(undefined)
  }
}

/** The events of a stream. A comment, which keeps the stream open, is returned as an event `alive`. */
export async function* events(lines: AsyncIterable<string>): AsyncGenerator<Event> {
  let fields: Record<string, string> = {}
  for await (const line of lines) {
    const colon = line.indexOf(':')
    const name = colon < 0 ? line : line.slice(0, colon)
    if (name) {
      fields[name] = line.slice(colon + 1).replace(/^ /, '')
    } else if (colon === 0) {
      yield { event: 'alive', data: {} }
    } else {
      if (fields['data'] !== undefined) yield { event: 'message', ...fields, data: JSON.parse(fields['data']) }
      fields = {}
    }
  }
}
