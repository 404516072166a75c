-- include: records, states, shown, show, claims
-- Set whether creates stop a server by default, and the server's labels.
-- ask: {account, id, fields: {consistency: 'stop', 'live' or '' (the provider's default), labels: JSON}}; a missing
-- field stays
-- Answers {1}; nil if the account has no such server.
local ask = cjson.decode(ARGV[1])
local key = 'server:' .. ask.id
local server = read_of(ask.account, key)
if not server or server.missing then return nil end
if not POWERS[server.power] then return unreadable(key, 'power cannot be read') end
server.labels = ask.fields.labels or server.labels
demand_whole(key, server)
local _, holding = show_server(ask.id)
if holding ~= '' and not KINDS[holding] then return unreadable('job:' .. server.job, 'kind cannot be read') end
if ask.fields.consistency == '' then
  redis.call('HDEL', key, 'consistency')
  ask.fields.consistency = nil
end
if next(ask.fields) then write(key, ask.fields) end
return {1}
