-- Put in front of every script: the clock, the records and how a customer is shown them, and the only functions that
-- change a job's state.
-- MAY_FOLLOW is prepended from worker/jobs/model.py, so that the table of states exists once.

local moment
local function now_ms()
  if not moment then
    local time = redis.call('TIME')
    moment = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return moment
end

-- A hash as a table; nil where there is none.
local function read(key)
  local flat = redis.call('HGETALL', key)
  if #flat == 0 then return nil end
  local record = {}
  for i = 1, #flat, 2 do record[flat[i]] = flat[i + 1] end
  return record
end

local function write(key, record)
  local flat = {}
  for field, value in pairs(record) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
  end
  redis.call('HSET', key, unpack(flat))
end

local function node_is_silent(node, silent_ms)
  local heartbeat = redis.call('HGET', 'node:' .. node, 'heartbeat_ms')
  return not heartbeat or now_ms() - heartbeat > tonumber(silent_ms)
end

local function owns_lease(node, owner)
  return redis.call('HGET', 'node:' .. node, 'owner') == owner
end

-- What a customer is shown of a server: {field, value, ...}, kind of the job that holds it or ''.
local function show_server(server_id)
  local holder = redis.call('HGET', 'server:' .. server_id, 'job')
  return redis.call('HGETALL', 'server:' .. server_id), holder and redis.call('HGET', 'job:' .. holder, 'kind') or ''
end

-- What a customer is shown of a job: {id, {field, value, ...}, {durations in ms of the node's latest jobs of its kind},
-- {its server's field, value, ...}, kind of the job that holds the server or ''}.
local function show_job(job_id)
  local job = read('job:' .. job_id)
  local server, holding = {}, ''
  if redis.call('HGET', 'server:' .. job.server, 'account') == job.account then -- else it has a new owner
    server, holding = show_server(job.server)
  end
  return {job_id, redis.call('HGETALL', 'job:' .. job_id),
    redis.call('LRANGE', 'node:' .. job.node .. ':milliseconds:' .. job.kind, 0, -1), server, holding}
end

local DELIVERIES_KEPT_MS = 7 * 86400 * 1000
local DELIVERIES_LISTED = 1000 -- of a webhook

-- Put a webhook into the line of those that have something to send: at the end of it, or later where it waits for a
-- retry or for the end of its claim. One whose turn it is keeps its place.
local function line_up(id)
  local hook, now = read('webhook:' .. id), now_ms()
  local place = tonumber(redis.call('ZSCORE', 'webhooks:due', id) or nil)
  if place and place <= now then return end
  local first = redis.call('ZRANGE', 'webhook:' .. id .. ':due', 0, 0, 'WITHSCORES')
  if not first[2] or hook.enabled ~= '1' then return redis.call('ZREM', 'webhooks:due', id) end
  redis.call('ZADD', 'webhooks:due', math.max(now, tonumber(first[2]), tonumber(hook.claimed_until_ms) or 0), id)
  redis.call('LPUSH', 'webhooks:wake', '1')
  redis.call('LTRIM', 'webhooks:wake', 0, 0)
end

-- Have a delivery made. It is in the webhook's log, and in its queue until it is made or given up.
local function post(id, delivery_id, delivery)
  local now, log, queue = now_ms(), 'webhook:' .. id .. ':log', 'webhook:' .. id .. ':due'
  delivery.v, delivery.attempts, delivery.created_ms, delivery.next_ms = '1', '0', tostring(now), tostring(now)
  write('delivery:' .. delivery_id, delivery)
  redis.call('ZADD', log, now, delivery_id)
  redis.call('ZADD', queue, now, delivery_id)
  for _, key in ipairs({'delivery:' .. delivery_id, log, queue}) do redis.call('PEXPIRE', key, DELIVERIES_KEPT_MS) end
  redis.call('ZREMRANGEBYSCORE', log, '-inf', now - DELIVERIES_KEPT_MS)
  for _, old in ipairs(redis.call('ZRANGE', log, 0, -DELIVERIES_LISTED - 1)) do
    redis.call('ZREM', log, old)
    if not redis.call('ZSCORE', queue, old) then redis.call('DEL', 'delivery:' .. old) end
  end
  line_up(id)
end

-- Tell the webhooks that want to know it what has become of a job, as it is now.
local function call_webhooks(job_id, job, event_id)
  local event, shown = 'job.' .. job.state, nil
  for _, id in ipairs(redis.call('ZRANGE', 'account:' .. job.account .. ':webhooks', 0, -1)) do
    local hook = read('webhook:' .. id)
    if hook.enabled == '1' and string.find(' ' .. hook.events .. ' ', ' ' .. event .. ' ', 1, true) then
      shown = shown or cjson.encode(show_job(job_id))
      post(id, string.sub(redis.sha1hex(id .. event_id), 1, 32), {event = event, job = shown})
    end
  end
end

-- Tell the account, and the operators of the cell, how a job has changed. note_codes: of its end, a space between them.
local function tell(job_id, job, note_codes)
  local mine, event_id = 'account:' .. job.account .. ':events', nil
  for key, most in pairs({[mine] = 1000, events = 10000}) do
    local added = redis.call('XADD', key, 'MAXLEN', '~', most, '*', 'account', job.account, 'server', job.server,
      'snapshot', job.snapshot, 'job', job_id, 'kind', job.kind, 'state', job.state, 'step', job.step or '', 'notes', note_codes or '')
    if key == mine then event_id = added end
  end
  redis.call('PEXPIRE', mine, 7 * 86400 * 1000)
  -- a step is no change of the state
  if job.state ~= 'in_progress' or not job.step then call_webhooks(job_id, job, event_id) end
end

local JOBS_LISTED_MS = 31 * 86400 * 1000 -- a little longer than the record of a job that ended is kept
local TRIMMED_MS = 3600 * 1000 -- between two trimmings of a list: each costs two writes, and a job is in ten lists

local function put_into(lists, job_id, job)
  for _, key in ipairs(lists) do
    redis.call('ZADD', key, job.queued_ms, job_id)
    if redis.call('PTTL', key) < JOBS_LISTED_MS then -- it is new, or was not trimmed for an hour
      redis.call('ZREMRANGEBYSCORE', key, '-inf', now_ms() - JOBS_LISTED_MS)
      redis.call('PEXPIRE', key, JOBS_LISTED_MS + TRIMMED_MS)
    end
  end
end

-- The lists that a job is in whatever becomes of it, and those of its state: its account's, and the operators'.
local function job_lists(job)
  local mine = 'account:' .. job.account .. ':jobs'
  local of_server = mine .. ':server:' .. job.server
  local of_state = {mine .. ':' .. job.state, of_server .. ':' .. job.state, 'jobs:state:' .. job.state}
  if next(MAY_FOLLOW[job.state]) then of_state[4] = 'jobs:node:' .. job.node .. ':' .. job.state end
  return {mine, of_server, 'jobs', 'jobs:kind:' .. job.kind, 'jobs:node:' .. job.node, 'jobs:server:' .. job.server},
    of_state
end

-- How many wait for a node, for the operators' list of nodes.
local function count_queue(node)
  redis.call('ZADD', 'nodes:by:queued', redis.call('ZCARD', 'jobs:node:' .. node .. ':queued'), node)
end

local function list_job(job_id, job)
  for _, lists in ipairs({job_lists(job)}) do put_into(lists, job_id, job) end
  count_queue(job.node)
end

-- Change a job's state; an error, which writes nothing, where the table forbids it.
local function become(job_id, job, state)
  if not MAY_FOLLOW[job.state][state] then
    return error('job ' .. job_id .. ': ' .. state .. ' may not follow ' .. job.state)
  end
  local _, before = job_lists(job)
  for _, key in ipairs(before) do redis.call('ZREM', key, job_id) end
  job.state = state
  redis.call('HSET', 'job:' .. job_id, 'state', state)
  local _, lists = job_lists(job)
  put_into(lists, job_id, job)
  count_queue(job.node)
end

-- Write the job's record, hold its server (unless it only looks), hand it to the node's queue and wake the node.
local function enqueue(job_id, job, queue)
  local now = now_ms()
  job.v, job.state, job.queued_ms, job.attempts = '1', 'queued', tostring(now), '0'
  write('job:' .. job_id, job)
  list_job(job_id, job)
  if job.kind ~= 'check_create' and job.kind ~= 'check_restore' then
    redis.call('HSET', 'server:' .. job.server, 'job', job_id)
  end
  redis.call('ZADD', 'jobs:waiting', now, job_id)
  -- arq's own record of the job. It expires only as a net below us: a job of a dead node is failed long before.
  local payload = string.gsub(queue.payload, 'JOB_ID', job_id)
  payload = string.gsub(payload, '"et":0', '"et":' .. string.format('%.0f', now))
  redis.call('SET', 'arq:job:' .. job_id, payload, 'PX', queue.expires_ms)
  redis.call('ZADD', queue.prefix .. job.node, now, job_id)
  local wake = queue.prefix .. job.node .. ':wake'
  redis.call('LPUSH', wake, '1')
  redis.call('LTRIM', wake, 0, 0)
  tell(job_id, job)
end

-- Write a snapshot's record and put it into every list. A name that another one holds stays with that one.
local function add_snapshot(id, snapshot)
  if snapshot.expires_ms then redis.call('ZADD', 'snapshots:expiring', snapshot.expires_ms, id) end
  snapshot.v = '1'
  write('snapshot:' .. id, snapshot)
  redis.call('ZADD', 'account:' .. snapshot.account .. ':snapshots', snapshot.created_ms, id)
  redis.call('ZADD', 'server:' .. snapshot.server .. ':snapshots', snapshot.created_ms, id)
  redis.call('SADD', 'server:' .. snapshot.server .. ':counted', id)
  redis.call('HSETNX', 'server:' .. snapshot.server .. ':names', snapshot.name, id)
end

-- Take a snapshot out of every list: the customer can't see it, its name and its slot are free.
local function hide_snapshot(id, snapshot)
  redis.call('ZREM', 'account:' .. snapshot.account .. ':snapshots', id)
  redis.call('ZREM', 'server:' .. snapshot.server .. ':snapshots', id)
  redis.call('SREM', 'server:' .. snapshot.server .. ':counted', id)
  local names = 'server:' .. snapshot.server .. ':names'
  if redis.call('HGET', names, snapshot.name) == id then redis.call('HDEL', names, snapshot.name) end
  redis.call('ZREM', 'snapshots:failed', id)
  redis.call('ZREM', 'snapshots:expiring', id)
end

-- Gone for the customer. Its node frees the space with a job, and finds it here until that is done.
local function retire_snapshot(id, snapshot, node, due_ms)
  hide_snapshot(id, snapshot)
  redis.call('HSET', 'snapshot:' .. id, 'status', 'deleting', 'node', node)
  redis.call('ZADD', 'node:' .. node .. ':deleting', due_ms, id)
end

-- A server's completed snapshots that were made by a schedule, this one or any, oldest first.
local function scheduled_snapshots(server_id, schedule_id)
  local made = {}
  for _, id in ipairs(redis.call('ZRANGE', 'server:' .. server_id .. ':snapshots', 0, -1)) do
    local snapshot = read('snapshot:' .. id)
    if snapshot.status == 'completed' and snapshot.schedule and snapshot.schedule == (schedule_id or snapshot.schedule) then
      made[#made + 1] = {id = id, snapshot = snapshot}
    end
  end
  return made
end

-- Retire the oldest of those snapshots until only so many are left. A protected one stays.
local function retire_oldest(made, left, node)
  local over = #made - left
  for _, one in ipairs(made) do
    if over > 0 and one.snapshot.protected ~= '1' then
      retire_snapshot(one.id, one.snapshot, node, now_ms())
      over = over - 1
    end
  end
end

local function forget_findings(node, server_id)
  redis.call('HDEL', 'node:' .. node .. ':findings', server_id)
  redis.call('ZREM', 'findings', server_id)
end

local function forget_snapshot(id, snapshot)
  hide_snapshot(id, snapshot)
  local key = 'server:' .. snapshot.server
  -- of a server that is nowhere any more only its snapshots were left to look after
  if redis.call('HEXISTS', key, 'missing') == 1 and redis.call('EXISTS', key .. ':snapshots') == 0 then
    forget_findings(redis.call('HGET', key, 'node'), snapshot.server)
  end
  redis.call('ZREM', 'node:' .. snapshot.node .. ':deleting', id)
  redis.call('DEL', 'snapshot:' .. id)
end

local function settle_create(id, snapshot, result, now)
  redis.call('HSET', 'snapshot:' .. id, 'status', result.snapshot_status, 'size_mb', result.size_mb)
  if result.snapshot_status == 'completed' and (result.contents or '') ~= '' then
    redis.call('HSET', 'snapshot:' .. id, 'contents', result.contents)
  end
  if result.snapshot_status == 'failed' then
    -- still listed, but it holds neither a slot nor its name: the customer may try again at once
    redis.call('SREM', 'server:' .. snapshot.server .. ':counted', id)
    local names = 'server:' .. snapshot.server .. ':names'
    if redis.call('HGET', names, snapshot.name) == id then redis.call('HDEL', names, snapshot.name) end
    redis.call('ZADD', 'snapshots:failed', now, id)
  end
end

local STATS_MS, STATS_KEPT_MS = 300000, 25 * 3600 * 1000

-- Count an end for the operators' charts: a hash for each five minutes. Durations are counted in bins a tenth apart.
local function count_end(job, result, now)
  local key = 'stats:' .. math.floor(now / STATS_MS)
  local function count(what, ms)
    local bin = ms and ':' .. math.floor(math.log(math.max(ms, 1)) / math.log(1.1)) or ''
    redis.call('HINCRBY', key, job.kind .. ':' .. what .. bin, 1)
  end
  -- what was cancelled did not fail: someone wanted it so
  count(result.failure_code == 'cancelled' and 'cancelled' or result.state)
  if result.state == 'completed' and job.started_ms then count('ms', now - job.started_ms) end
  if result.downtime_seconds ~= '' then count('downtime', tonumber(result.downtime_seconds) * 1000) end
  redis.call('PEXPIRE', key, STATS_KEPT_MS)
end

-- What operators look for when a job did not end well.
local function list_failure(job_id, job, result, now)
  if result.failure_code == '' then return end
  put_into({'jobs:error:' .. result.failure_code}, job_id, job)
  if result.stranded == '1' then
    redis.call('HSET', 'server:' .. job.server, 'stranded', job_id)
    redis.call('ZADD', 'servers:stranded', now, job.server)
  end
end

-- What a job says beside its state. A worker of an earlier version says none of this.
local function keep_notes(job_id, job, result)
  for _, field in ipairs({'notes', 'contents'}) do
    if (result[field] or '') ~= '' then redis.call('HSET', 'job:' .. job_id, field, result[field]) end
  end
  local only_looked = job.kind == 'check_create' or job.kind == 'check_restore' -- then it says what would be done
  if (result.audited_codes or '') ~= '' and not only_looked then -- for the audit: its entries live longer than the job's record
    redis.call('SET', 'job:' .. job_id .. ':noted', result.audited_codes, 'PX', result.note_codes_ms)
  end
end

-- A delete that failed is tried again: each time later, for its reason seldom goes by itself.
local function put_off_delete(id, job, result, now)
  local failures = 1
  -- another tool at work on the server passes by itself
  if job.started_ms and result.failure_code ~= 'server_busy' then
    failures = redis.call('HINCRBY', 'snapshot:' .. id, 'failed_deletes', 1)
  end
  local wait = tonumber(result.retry_ms) * 2 ^ math.min(failures - 1, 16)
  wait = math.min(wait, tonumber(result.retry_most_ms or result.retry_ms))
  redis.call('ZADD', 'node:' .. job.node .. ':deleting', now + wait, id)
end

-- End a job: its state, what it means for its snapshot, the server free again, arq's record gone.
-- result: state, failure_code, failure_detail, stranded, downtime_seconds, snapshot_status, size_mb, retry_ms, retry_most_ms,
-- undoable_ms, notes and contents (JSON or ''), note_codes, audited_codes, note_codes_ms
local function conclude(job_id, job, result)
  local now = now_ms()
  become(job_id, job, result.state)
  redis.call('HSET', 'job:' .. job_id, 'finished_ms', now, 'failure_code', result.failure_code,
    'failure_detail', result.failure_detail, 'stranded', result.stranded, 'downtime_seconds', result.downtime_seconds)
  keep_notes(job_id, job, result)
  redis.call('PEXPIRE', 'job:' .. job_id, result.kept_ms)
  redis.call('ZREM', 'jobs:waiting', job_id)
  count_end(job, result, now)
  list_failure(job_id, job, result, now)
  local snapshot = read('snapshot:' .. job.snapshot)
  if snapshot and job.kind == 'create' then
    settle_create(job.snapshot, snapshot, result, now)
    local keep = snapshot.schedule and redis.call('HGET', 'schedule:' .. snapshot.schedule, 'keep')
    if keep then retire_oldest(scheduled_snapshots(job.server, snapshot.schedule), tonumber(keep), job.node) end
  end
  if snapshot and job.kind == 'delete' then
    if result.state == 'completed' then
      forget_snapshot(job.snapshot, snapshot)
    else
      put_off_delete(job.snapshot, job, result, now)
    end
  end
  if redis.call('HGET', 'server:' .. job.server, 'job') == job_id then
    redis.call('HDEL', 'server:' .. job.server, 'job')
  end
  if result.undoable_ms ~= '' then
    redis.call('HSET', 'job:' .. job_id, 'undoable_until_ms', now + tonumber(result.undoable_ms))
    redis.call('HSET', 'server:' .. job.server, 'undoable', job_id) -- the latest only: it has replaced the one before
  end
  if result.state == 'completed' and job.started_ms then
    local durations = 'node:' .. job.node .. ':milliseconds:' .. job.kind
    redis.call('LPUSH', durations, now - job.started_ms)
    redis.call('LTRIM', durations, 0, 19)
  end
  tell(job_id, job, result.note_codes)
end

-- Take a job that was ended out of its node's queue.
local function forget_queued(job_id, job)
  redis.call('ZREM', 'arq:queue:' .. job.node, job_id)
  redis.call('DEL', 'arq:job:' .. job_id)
end

-- {id, {field, value, ...}, name of its server}.
local function show_snapshot(id)
  local server = redis.call('HGET', 'snapshot:' .. id, 'server')
  return {id, redis.call('HGETALL', 'snapshot:' .. id), redis.call('HGET', 'server:' .. server, 'name') or ''}
end

-- {id, {field, value, ...}, name of its server}.
local function show_schedule(id)
  local server = redis.call('HGET', 'schedule:' .. id, 'server')
  return {id, redis.call('HGETALL', 'schedule:' .. id), redis.call('HGET', 'server:' .. server, 'name') or ''}
end

-- {id, {field, value, ...}}: its secrets are kept elsewhere.
local function show_webhook(id)
  return {id, redis.call('HGETALL', 'webhook:' .. id)}
end

local function forget_schedule(id, schedule)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules', id)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules:server:' .. schedule.server, id)
  redis.call('ZREM', 'schedules:due', id)
  redis.call('DEL', 'schedule:' .. id)
end

-- Where the answer to a request with a key is kept: its account's, or an operator's own.
local function answer_key(ask)
  return 'idempotency:' .. (ask.idempotency.owner or ask.account) .. ':' .. ask.idempotency.key
end

-- The answer that the request was given before, if it has a key and it is not its first time; else nil.
local function replay(ask)
  local seen = ask.idempotency and redis.call('GET', answer_key(ask))
  if not seen then return nil end
  seen = cjson.decode(seen)
  if seen.fingerprint ~= ask.idempotency.fingerprint then return {'refused', 'idempotency_key_reused'} end
  return seen.answer
end

-- Keep what was answered under the request's key. A refusal has changed nothing: asked again it is decided anew.
local function remember(ask, answer)
  if ask.idempotency and answer[1] == 'admitted' then
    local seen = cjson.encode({fingerprint = ask.idempotency.fingerprint, answer = answer})
    redis.call('SET', answer_key(ask), seen, 'PX', ask.idempotency.kept_ms)
  end
  return answer
end
