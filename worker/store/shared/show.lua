-- include: records
-- Records in the form that the store's Python code parses.

-- A server: {field, value, ...}, kind of the job that holds it or ''.
local function show_server(server_id)
  local holder = redis.call('HGET', 'server:' .. server_id, 'job')
  local of, kind = unpack(holder and redis.call('HMGET', 'job:' .. holder, 'server', 'kind') or {})
  return redis.call('HGETALL', 'server:' .. server_id), of == server_id and kind or ''
end

-- A job: {id, {field, value, ...}, {durations in ms of the node's latest jobs of its kind},
-- {its server's field, value, ...}, kind of the job that holds the server or ''}.
local function show_job(job_id)
  local job = read('job:' .. job_id)
  local server, holding = {}, ''
  if redis.call('HGET', 'server:' .. job.server, 'account') == job.account then -- else the server has a new owner
    server, holding = show_server(job.server)
  end
  return {job_id, redis.call('HGETALL', 'job:' .. job_id),
    redis.call('LRANGE', 'node:' .. job.node .. ':milliseconds:' .. job.kind, 0, -1), server, holding}
end

-- A webhook: {id, {field, value, ...}}, without its secrets.
local function show_webhook(id)
  return {id, redis.call('HGETALL', 'webhook:' .. id)}
end

-- The name of a server that is the account's, else ''.
local function name_of(server_id, account)
  local name, owner = unpack(redis.call('HMGET', 'server:' .. server_id, 'name', 'account'))
  return owner == account and name or ''
end

-- A snapshot: {id, {field, value, ...}, name of its server}.
local function show_snapshot(id)
  local snapshot = read('snapshot:' .. id)
  return {id, redis.call('HGETALL', 'snapshot:' .. id), name_of(snapshot.server, snapshot.account)}
end

-- Whether a snapshot is in an account's list, or in that of its server: a list that is wrong shows nobody's data to
-- another.
local function is_listed(id, account, server)
  local its_account, its_server = unpack(redis.call('HMGET', 'snapshot:' .. id, 'account', 'server'))
  return its_account == account and its_server == (server or its_server)
end

-- The list of an account's snapshots, or of one of its servers; nil if the server is another account's.
local function snapshots_of(account, server)
  if not server then return 'account:' .. account .. ':snapshots' end
  return redis.call('HGET', 'server:' .. server, 'account') == account and 'server:' .. server .. ':snapshots' or nil
end
