// The contract's four calls with Node's own fetch: contract.mjs URL TOKEN SERVER_ID
const [url, token, server] = process.argv.slice(2)
const headers = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' }

const call = async (method, path, body) => {
  const answer = await fetch(`${url}/api/v1/${path}`, { method, headers, body: body && JSON.stringify(body) })
  const text = await answer.text()
  return { status: answer.status, job: answer.headers.get('X-Job-Id'), body: text ? JSON.parse(text) : null }
}
const follow = async ({ job }) => {
  while (!['completed', 'failed'].includes((await call('GET', `jobs/${job}/`)).body.state)) {
    await new Promise((done) => setTimeout(done, 50))
  }
}

const create = await call('POST', 'snapshots/', { server_id: Number(server), name: 'by-hand' })
await follow(create)
const list = await call('GET', `snapshots/?server_id=${server}`)
const restore = await call('POST', `snapshots/${create.body.id}/restore/`)
await follow(restore)
const deleted = await call('DELETE', `snapshots/${create.body.id}/`)
const answered = ({ status, body }) => [status, body]
process.stdout.write(JSON.stringify({
  create: answered(create), list: answered(list), restore: answered(restore), delete: answered(deleted),
}))
