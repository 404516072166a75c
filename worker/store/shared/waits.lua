-- include: clock, records, nodes, pause, starting
-- A gateway that waits for a node's next job. The script that queues the job starts it and gives it to the gateway,
-- which saves a script and a write to the disk. Neither the wait nor what is given to it is replicated or written to
-- the disk, because a wait ends with its Redis. See docs/adr/0055-an-admission-starts-the-job-of-a-waiting-node.md.

-- How much longer than their use the keys are kept. Redis writes the expiry of a key to the disk and to replicas,
-- whoever set it; so the end of a wait is in its record, and the node's next `take` replaces the key before it expires.
local SPARE_MS = 10000

-- The wait in that text; nil if there is none, or it cannot be read.
local function wait_in(text)
  local wait = json(text or '')
  if type(wait) ~= 'table' or type(wait.id) ~= 'string' or type(wait.owner) ~= 'string' then return nil end
  if wait.credential ~= nil and type(wait.credential) ~= 'string' then return nil end
  return wait
end

-- Record that a gateway waits for the next job of the calling node, which holds its lease and has no job to start.
-- ask: {node, owner, credential or nil, wait: {id, ms}}
local function note_wait(ask)
  local until_ms = now_ms() + ask.wait.ms
  local wait = cjson.encode({id = ask.wait.id, owner = ask.owner, credential = ask.credential, until_ms = until_ms})
  redis.set_repl(redis.REPL_NONE)
  -- pcall: a Redis that refuses it gives jobs without it
  redis.pcall('SET', 'node:' .. ask.node .. ':waits', wait, 'PX', ask.wait.ms + SPARE_MS)
  redis.set_repl(redis.REPL_ALL)
end

-- No gateway waits for the node's next job any longer, or not the one with that ID.
local function forget_wait(node, id)
  local key = 'node:' .. node .. ':waits'
  local wait = wait_in(redis.call('GET', key))
  if not wait or id and wait.id ~= id then return end
  redis.set_repl(redis.REPL_NONE)
  redis.call('DEL', key)
  redis.set_repl(redis.REPL_ALL)
end

-- The gateway's wait, which is thereby over; nil if none waits, or the node must not start the job.
local function end_wait(job)
  redis.set_repl(redis.REPL_NONE)
  local wait = wait_in(redis.call('GETDEL', 'node:' .. job.node .. ':waits'))
  redis.set_repl(redis.REPL_ALL)
  if not wait or now_ms() >= (tonumber(wait.until_ms) or 0) then return nil end
  if not owns_lease(job.node, wait.owner) or is_paused(job.node) then return nil end
  if wait.credential and redis.call('EXISTS', wait.credential) == 0 then return nil end
  local start_by_ms = number(job.start_by_ms)
  if start_by_ms and now_ms() >= start_by_ms then return nil end
  return wait
end

-- Start a job that was just queued and give it to the gateway that waits for one, as `nodes/take` would. Answers
-- whether it was given. Each wait gets one job.
local function give_at_once(job_id, job)
  local wait = end_wait(job)
  if not wait then return false end
  local started = {}
  for field, value in pairs(job) do started[field] = value end -- the admission answers with the job as it was queued
  start_job(job_id, started, redis.call('HGET', 'server:' .. job.server, 'power'))
  local given = cjson.encode({job_id, flattened(started)})
  local list = 'node:' .. job.node .. ':given:' .. wait.id
  redis.set_repl(redis.REPL_NONE)
  redis.call('LPUSH', list, given)
  redis.call('PEXPIRE', list, SPARE_MS)
  redis.set_repl(redis.REPL_ALL)
  return true
end
