-- include: records
-- Records in the form that the store's Python code parses.

-- A server: {field, value, ...}, kind of the job that holds it or ''.
local function show_server(server_id, flat)
  flat = flat or redis.call('HGETALL', 'server:' .. server_id)
  local holder = named(flat).job
  local of, kind = unpack(holder and redis.call('HMGET', 'job:' .. holder, 'server', 'kind') or {})
  return flat, of == server_id and kind or ''
end

-- The server of a job: {field, value, ...}, kind of the job that holds it or ''. {} and '' if it has a new owner.
local function server_of(job)
  local flat = redis.call('HGETALL', 'server:' .. job.server)
  if named(flat).account ~= job.account then return {{}, ''} end
  return {show_server(job.server, flat)}
end

-- The durations in ms of the latest jobs of the job's kind on its node.
local function durations_of(job)
  return redis.call('LRANGE', 'node:' .. job.node .. ':milliseconds:' .. job.kind, 0, -1)
end

-- A job: {id, {field, value, ...}, {durations in ms of the node's latest jobs of its kind},
-- {its server's field, value, ...}, kind of the job that holds the server or ''}. read_before: for a script that shows
-- several jobs and changes nothing, a table of what they have in common, filled here; or nil.
local function show_job(job_id, read_before)
  local job, flat = read('job:' .. job_id)
  local common = read_before or {}
  local server, durations = job.server .. ' ' .. job.account, job.node .. ' ' .. job.kind
  common[server] = common[server] or server_of(job)
  common[durations] = common[durations] or durations_of(job)
  return {job_id, flat, common[durations], unpack(common[server])}
end

-- What the customer of a job is shown of its server: {its power, '' if it is gone or has a new owner, kind of the job
-- that holds it or ''}.
local function state_of_server(server_id, account)
  local owner, missing, power, holder =
    unpack(redis.call('HMGET', 'server:' .. server_id, 'account', 'missing', 'power', 'job'))
  if owner ~= account or missing then return {'', ''} end
  local of, kind = unpack(holder and redis.call('HMGET', 'job:' .. holder, 'server', 'kind') or {})
  return {power or 'unknown', of == server_id and kind or ''}
end

-- A webhook: {id, {field, value, ...}}, without its secrets.
local function show_webhook(id)
  return {id, redis.call('HGETALL', 'webhook:' .. id)}
end

-- The name of the server if it belongs to the account, else ''.
local names_of_servers = {}
local function name_of(server_id, account)
  local key = server_id .. ' ' .. account
  if not names_of_servers[key] then
    local name, owner = unpack(redis.call('HMGET', 'server:' .. server_id, 'name', 'account'))
    names_of_servers[key] = owner == account and name or ''
  end
  return names_of_servers[key]
end

-- A snapshot: {id, {field, value, ...}, name of its server}. The record, if it was read before.
local function show_snapshot(id, snapshot, flat)
  if not snapshot then snapshot, flat = read('snapshot:' .. id) end
  return {id, flat, name_of(snapshot.server, snapshot.account)}
end

-- The fields of a snapshot that a list of the account, or of the given server, shows: {id, server, name,
-- status, size_mb, created_ms, description, name of its server}. nil for another's.
local function brief_snapshot(id, account, server)
  local found = redis.call('HMGET', 'snapshot:' .. id, 'account', 'server', 'name', 'status', 'size_mb', 'created_ms',
    'description')
  if found[1] ~= account or not found[2] or server and found[2] ~= server then return nil end
  found[1], found[8] = id, name_of(found[2], account)
  return found
end

-- Whether a snapshot belongs into an account's list or that of its server. Checked so that a wrong list never shows
-- another account's data.
local function is_listed(id, account, server)
  local its_account, its_server = unpack(redis.call('HMGET', 'snapshot:' .. id, 'account', 'server'))
  return its_account == account and its_server == (server or its_server)
end

-- The list of an account's snapshots, or of one of its servers; nil if the server is another account's.
local function snapshots_of(account, server)
  if not server then return 'account:' .. account .. ':snapshots' end
  return redis.call('HGET', 'server:' .. server, 'account') == account and 'server:' .. server .. ':snapshots' or nil
end
