-- include: clock, ids, rate, records
-- Checks the claims of nodes. A claim that contradicts the records changes nothing, is counted, and is reported to
-- operators.

local REFUSED_KEPT_MS = 30 * 86400 * 1000
local REFUSED_LISTED = 10000
local MOST_MB = 2 ^ 43 -- 8 EiB, the largest size of a qcow2 image
local TOLD_BYTES, TOLD_MS = 64 * 2 ^ 20, 86400000 -- of the texts that a node adds: so much at once, and in a day
local MOVING_MS = 600000 -- how long a server's former node may still finish its work on it

local refused_before = {} -- by the same script

-- Refuse a claim of the calling node. about: the object of the claim, for people. Answers {'claim_refused', reason}.
local function refuse_claim(ask, call, reason, about)
  local now, name = now_ms(), ask.node .. ':' .. call .. ':' .. reason
  local key = 'refused_claim:' .. name
  redis.call('HINCRBY', key, 'count', 1)
  if refused_before[key] then return {'claim_refused', reason} end
  refused_before[key] = true
  redis.call('HSETNX', key, 'first_ms', now)
  redis.call('HSET', key, 'about', string.match(about, '^[%w_.:-]*$') and string.sub(about, 1, 64) or '')
  redis.call('PEXPIRE', key, REFUSED_KEPT_MS)
  redis.call('ZADD', 'refused_claims', now, name)
  redis.call('ZREMRANGEBYSCORE', 'refused_claims', '-inf', now - REFUSED_KEPT_MS)
  redis.call('ZREMRANGEBYRANK', 'refused_claims', 0, -REFUSED_LISTED - 1)
  redis.call('PEXPIRE', 'refused_claims', REFUSED_KEPT_MS)
  return {'claim_refused', reason}
end

-- Why the node may not make claims about the server, or nil. A server that Redis has lost, that has just left the
-- node, or that the node also reports is not a refused claim: the node's reports handle these cases.
local function refuse_elsewhere(ask, call, server_id, server)
  if server and server.node == ask.node then return nil end
  if not server then return {'not_here', 'server_unknown'} end
  local just_left = server.moved_from == ask.node and now_ms() - (number(server.moved_ms) or 0) < MOVING_MS
  if just_left or redis.call('HEXISTS', 'node:' .. ask.node .. ':claimed', server_id) == 1 then
    return {'not_here', 'other_node'}
  end
  return refuse_claim(ask, call, 'other_node', 'server:' .. server_id)
end

-- Why the node may not change another node's job, or nil.
local function refuse_foreign_job(ask, call, job)
  return job.node ~= ask.node and refuse_claim(ask, call, 'other_node', 'job:' .. ask.job) or nil
end

-- Whether the value is a text of at most that many bytes.
local function fits(text, bytes)
  return type(text) == 'string' and #text <= bytes
end

-- Whether the node may add texts of so many bytes now.
local function may_add(node, bytes)
  return bytes == 0 or take('node:' .. node .. ':told', TOLD_BYTES, TOLD_MS, bytes) == 1
end

local POWERS = {on = true, off = true, paused = true}

-- Whether the value is the text of a non-negative integer that a double represents exactly.
local function is_whole(text)
  return text == '0' or is_id(text)
end

-- Whether the value is the size of a snapshot, or '' if unknown.
local function is_size(text)
  return text == '' or is_whole(text) and tonumber(text) <= MOST_MB
end
