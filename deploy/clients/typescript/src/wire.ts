// Sends calls, and retries those that can be repeated.
import { ofProblem, Unreachable } from './errors.ts'
import type { ProblemDocument } from './models.ts'

const ANSWER_SECONDS = 60 // the service ends a call after 30
const SILENCE_SECONDS = 45 // a stream has a comment every 15
const FIRST_WAIT_SECONDS = 0.5
export const LONGEST_WAIT_SECONDS = 15

export type Query = Record<string, string | number | boolean | undefined>

export interface Answer {
  body: unknown
  headers: Headers
}

export interface WireOptions {
  accountId?: number | undefined
  retrySeconds: number
}

export class Wire {
  readonly #root: string
  readonly #headers: Record<string, string>
  readonly #retrySeconds: number

  constructor(url: string, token: string, { accountId, retrySeconds }: WireOptions) {
    if (!['http:', 'https:'].includes(new URL(url).protocol)) throw new TypeError('The URL must be http or https.')
    this.#root = `${url.replace(/\/+$/, '')}/api/v1/`
    this.#headers = { Authorization: `Bearer ${token}`, 'User-Agent': 'vps-snapshots-client' }
    if (accountId !== undefined) this.#headers['X-Account-Id'] = String(accountId)
    this.#retrySeconds = retrySeconds
  }

  /** Throws ApiError and Unreachable. */
  async call(method: string, path: string, { body, query }: { body?: unknown; query?: Query } = {}): Promise<Answer> {
    const headers: Record<string, string> = { ...this.#headers }
    if (method === 'POST') headers['Idempotency-Key'] = crypto.randomUUID()
    if (body !== undefined) headers['Content-Type'] = 'application/json'
    const options: RequestInit = { method, headers, redirect: 'manual' }
    if (body !== undefined) options.body = JSON.stringify(body)
    const [response, isLost] = await this.#repeated(() =>
      fetch(this.#url(path, query), { ...options, signal: AbortSignal.timeout(ANSWER_SECONDS * 1000) }),
    )
    const text = await response.text()
    if (method === 'DELETE' && isLost && response.status === 404) {
      return { body: undefined, headers: response.headers } // the call whose answer was lost has deleted it
    }
    if (response.status < 200 || response.status >= 300) throw ofProblem(response.status, problem(text))
    return { body: text ? JSON.parse(text) : undefined, headers: response.headers }
  }

  /** The lines of an event stream. Ends it when the caller is done, or after a silence. Throws ApiError and Unreachable. */
  async *stream(path: string, headers: Record<string, string>, seconds = SILENCE_SECONDS): AsyncGenerator<string> {
    const ending = new AbortController()
    let timer: ReturnType<typeof setTimeout> | undefined
    const listen = () => {
      clearTimeout(timer)
      timer = setTimeout(() => ending.abort(), Math.min(seconds, SILENCE_SECONDS) * 1000)
    }
    listen()
    try {
      const options = { headers: { ...this.#headers, ...headers }, signal: ending.signal }
      const response = await fetch(this.#url(path), options)
      if (!response.ok || !response.body) throw ofProblem(response.status, problem(await response.text()))
      const decoder = new TextDecoder()
      let rest = ''
      for await (const part of response.body as unknown as AsyncIterable<Uint8Array>) {
        listen()
        const lines = (rest + decoder.decode(part, { stream: true })).split('\n')
        rest = lines.pop() ?? ''
        yield* lines
      }
    } catch (error) {
      throw unreachable(error)
    } finally {
      clearTimeout(timer)
      ending.abort()
    }
  }

  #url(path: string, query: Query = {}): string {
    const given = Object.entries(query).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]]))
    const text = new URLSearchParams(given as [string, string][]).toString()
    return `${this.#root}${path}${text ? `?${text}` : ''}`
  }

  /** The response, and whether an earlier one was lost. */
  async #repeated(send: () => Promise<Response>): Promise<[Response, boolean]> {
    const deadline = Date.now() + this.#retrySeconds * 1000
    let isLost = false
    for (let wait = FIRST_WAIT_SECONDS; ; wait = Math.min(2 * wait, LONGEST_WAIT_SECONDS)) {
      try {
        const response = await send()
        wait = Math.max(wait, retryAfter(response.headers))
        const isLate = Date.now() + wait * 1000 > deadline
        if ((response.status !== 429 && response.status !== 503) || isLate) return [response, isLost]
        await response.body?.cancel()
      } catch (error) {
        if (Date.now() + wait * 1000 > deadline) throw unreachable(error)
        isLost = true
      }
      await pause(wait)
    }
  }
}

export function pause(seconds: number): Promise<void> {
  return new Promise((done) => setTimeout(done, seconds * 1000))
}

/** How many calls the token has left, undefined if the response does not show it. */
export function callsLeft(headers: Headers): number | undefined {
  const found = /\br=(\d+)/.exec(headers.get('RateLimit') ?? '')
  return found ? Number(found[1]) : undefined
}

/** Seconds; 0 if the header is missing or is a date from a proxy. */
function retryAfter(headers: Headers): number {
  const given = headers.get('Retry-After') ?? ''
  return /^\d+$/.test(given) ? Number(given) : 0
}

function problem(text: string): Partial<ProblemDocument> {
  try {
    const found: unknown = JSON.parse(text)
    return typeof found === 'object' && found !== null ? found : {}
  } catch {
    return {} // of some proxy
  }
}

function unreachable(error: unknown): unknown {
  const isOurs = error instanceof Error && 'requestId' in error
  return isOurs ? error : new Unreachable(String(error), { cause: error })
}
