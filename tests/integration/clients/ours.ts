// Our own TypeScript client with a real service: ours.ts URL TOKEN SERVER_ID
import { createHmac } from 'node:crypto'
import { Client, InvalidSignature, NameTaken, NotFound, verifyMessage } from './client/index.js'

const [url, token, server] = process.argv.slice(2) as [string, string, string]
const client = new Client(url, token)
const server_id = Number(server)
const thrown = (error: unknown) => error

const created = await client.snapshots.create({ server_id, name: 'from-typescript' })
const create = await client.waitForJob(created.jobId)
const refused = await client.snapshots.create({ server_id, name: 'from-typescript' }).catch(thrown)
const restored = await client.snapshots.restore(created.body.id)
const restore = await client.waitForJob(restored.jobId, { timeoutSeconds: 60 })
const undone = await client.jobs.undoRestore(restore.id)
const undo = await client.waitForJob(undone.jobId)
const found = await client.snapshots.find(server_id, 'from-typescript')
const deleted = await client.snapshots.delete(created.body.id)
await client.waitForJob(deleted.jobId)
const missing = await client.snapshots.get(created.body.id).catch(thrown)
const listed: string[] = []
for await (const snapshot of client.snapshots.list({ server_id })) listed.push(snapshot.name)

const secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'
const body = new Uint8Array(Buffer.from('{"type": "webhook.test", "data": {"webhook_id": "\u00fc"}}'))
const timestamp = String(Math.round(Date.now() / 1000))
const key = Buffer.from(secret.slice(6), 'base64')
const signature = `v1,${createHmac('sha256', key).update(`m1.${timestamp}.`).update(body).digest('base64')}`
const headers = { 'webhook-id': 'm1', 'webhook-timestamp': timestamp, 'webhook-signature': `v1,AAAA ${signature}` }
const genuine = await verifyMessage(secret, headers, body)
const forged = await verifyMessage(secret, { ...headers, 'webhook-id': 'm2' }, body).catch(thrown)

console.log(
  JSON.stringify({
    jobs: [create, restore, undo].map((job) => `${job.kind} ${job.state}`),
    refused: refused instanceof NameTaken && refused.conflictsWith?.snapshot_id === created.body.id,
    found: found?.id === created.body.id,
    missing: missing instanceof NotFound && missing.code,
    listed,
    genuine: genuine.type,
    forged: forged instanceof InvalidSignature,
  }),
)
