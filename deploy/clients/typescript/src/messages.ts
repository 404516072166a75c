// Messages of webhooks, signed according to Standard Webhooks.
import { SnapshotsError } from './errors.ts'
import type { JobMessage, TestMessage } from './models.ts'

const TOLERANCE_SECONDS = 300

/** The service did not send this message, or it is too old. */
export class InvalidSignature extends SnapshotsError {}

/**
 * Verifies a message and returns it. `headers`: those of the request, with names in lower case, as in Node; `body`:
 * the bytes as they arrived. Throws InvalidSignature.
 */
export async function verifyMessage(
  secret: string,
  headers: Record<string, string | string[] | undefined>,
  body: Uint8Array<ArrayBuffer>,
): Promise<JobMessage | TestMessage> {
  const [id, timestamp, signatures] = ['id', 'timestamp', 'signature'].map((name) => headers[`webhook-${name}`])
  if (typeof id !== 'string' || typeof timestamp !== 'string' || typeof signatures !== 'string') {
    throw new InvalidSignature('A header is missing or not valid.')
  }
  if (!(Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE_SECONDS)) {
    throw new InvalidSignature('The message is not of the last five minutes.')
  }
  const raw = fromBase64(secret.replace(/^whsec_/, ''))
  const key = await crypto.subtle.importKey('raw', raw, { name: 'HMAC', hash: 'SHA-256' }, false, ['verify'])
  const head = new TextEncoder().encode(`${id}.${timestamp}.`)
  const signed = new Uint8Array(head.length + body.length)
  signed.set(head)
  signed.set(body, head.length)
  for (const signature of signatures.split(' ')) {
    const given = signature.startsWith('v1,') ? fromBase64(signature.slice(3)) : undefined
    if (given && (await crypto.subtle.verify('HMAC', key, given, signed))) {
      return JSON.parse(new TextDecoder().decode(body))
    }
  }
  throw new InvalidSignature('No signature is of this secret and this message.')
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0))
}
