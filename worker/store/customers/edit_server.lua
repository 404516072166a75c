-- include: records
-- Change the fields of a server that a customer sets.
-- ask: {account, id, fields: {consistency: 'stop', 'live' or '' (as the provider has it), labels: JSON}}; each field
-- may be missing
-- Answers {1}; nil if the account has no such server.
local ask = cjson.decode(ARGV[1])
local key = 'server:' .. ask.id
local server = read_of(ask.account, key)
if not server or server.missing then return nil end
if ask.fields.consistency == '' then
  redis.call('HDEL', key, 'consistency')
  ask.fields.consistency = nil
end
if next(ask.fields) then write(key, ask.fields) end
return {1}
