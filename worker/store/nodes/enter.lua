-- Run a script for a node if its credential is still valid. A connection can outlive its credential, because a gateway
-- checks for ended ones only twice a second.
-- Only reads.
-- ask: {credential: the key of the node's credential, if it needs one, and the script's own fields}
-- Answers {'credential_ended'}, or the script's answer.
local ask = cjson.decode(ARGV[1])
if ask.credential and redis.call('EXISTS', ask.credential) == 0 then return {'credential_ended'} end
return body(ask)
